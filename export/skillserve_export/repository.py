"""From a weights folder to a servable model folder: export, gate, write. A failed gate writes nothing.

model_repository/skill_embedder/
├── config.pbtxt      what Triton reads
├── card.json         what clients read
├── tokenizer.json
├── probe.json        a known question with its answer, for health checks
├── export.json       how the graph was made, and the gate's figures
├── warmup/           the probe's tensors, run before the model is declared ready
└── 1/model.onnx
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from skillserve.card import CARD_FILE, ModelCard, read_card
from skillserve.config import ExportSettings
from skillserve.errors import RepositoryError
from skillserve.probe import PROBE_FILE, Probe
from skillserve.publish import published_folder, sha256_of
from skillserve.tensors import ATTENTION_MASK, INPUT_IDS, MODEL_NAMES, OUTPUT_NAMES, SEQ_LENS, Layout, pack
from skillserve_export.config import GRAPH_FILE, WARMUP_FOLDER, model_config, to_pbtxt
from skillserve_export.families import family_of
from skillserve_export.graph import export_packed, export_padded, export_stock
from skillserve_export.parity import Check, PackedGraph, StockGraph, check_parity, require
from skillserve_export.sample import ParitySample, load_sample

__all__ = ["EXPORT_FILE", "NUM_STEPS", "Exported", "export_model", "verify_model"]

EXPORT_FILE = "export.json"

NUM_STEPS = 9
"""How often `export_model` calls `advance`: load, packed, stock, six checks."""

_PROBE_SEQUENCES = 2
_PROBE_NUMBERS = 5
PROBE_TOLERANCE = 5e-3
"""Wide enough for another processor's rounding and half precision, narrow enough for wrong weights: numbers of
a unit vector of 384 dimensions are 0.05 on average."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export or a verification found."""

    card: ModelCard
    folder: Path
    checks: list[Check]


def export_model(
    weights: Path,
    settings: ExportSettings,
    *,
    data: Path | None = None,
    layout: Layout = "packed",
    advance: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Export, gate and write one model; raises ParityError or CardError and then leaves the repository alone.

    The padded layout passes the same gate as the packed one: it is exported beside a packed graph that did.
    """
    card = read_card(weights, verify_weights=True)
    family = family_of(card)
    with tempfile.TemporaryDirectory(prefix="skillserve-export-") as scratch_name:
        scratch = Path(scratch_name)
        model = family.load(weights, card)
        advance("exporting the packed graph")
        export_packed(family.packed(model, card, weights), card, settings.attention_core, scratch / GRAPH_FILE)
        advance("exporting the reference")
        export_stock(model, card, scratch / "stock.onnx")
        advance("checking parity")
        sample = load_sample(card, weights, data)
        packed = PackedGraph(scratch / GRAPH_FILE)
        stock = StockGraph(scratch / "stock.onnx", card)
        checks = check_parity(packed, stock, card, sample, lambda: advance("checking parity"))
        require(checks, f"packed graph of `{card.name}`")
        probe = _probe(card, packed, sample)
        if layout == "padded":
            export_padded(model, card, scratch / GRAPH_FILE)
        folder = settings.repository / MODEL_NAMES[card.role]
        with published_folder(folder) as draft:
            graph = draft / str(settings.version) / GRAPH_FILE
            graph.parent.mkdir()
            shutil.move(scratch / GRAPH_FILE, graph)
            for name in (CARD_FILE, "tokenizer.json"):
                shutil.copyfile(weights / name, draft / name)
            (draft / "config.pbtxt").write_text(to_pbtxt(model_config(card, settings, layout, probe)))
            (draft / PROBE_FILE).write_text(probe.model_dump_json(indent=1) + "\n")
            _write_warmup(draft / WARMUP_FOLDER, probe)
            record = _record(settings, layout, graph, checks)
            (draft / EXPORT_FILE).write_text(json.dumps(record, indent=1) + "\n")
    return Exported(card, folder, checks)


def verify_model(
    weights: Path,
    settings: ExportSettings,
    *,
    data: Path | None = None,
    advance: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Check the graph that stands in the repository against its weights; writes nothing."""
    card = read_card(weights, verify_weights=True)
    folder = settings.repository / MODEL_NAMES[card.role]
    served = read_card(folder)
    if served.digest != card.digest:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"a graph of {served.short_digest}",
            wanted=f"one of {card.short_digest}, the weights in `{weights}`",
            fix=f"Export them: skillserve export {weights} --repository {settings.repository}",
        )
    path = folder / str(settings.version) / GRAPH_FILE
    _check_unchanged(folder, path)
    with tempfile.TemporaryDirectory(prefix="skillserve-verify-") as scratch_name:
        reference = Path(scratch_name) / "stock.onnx"
        advance("exporting the reference")
        export_stock(family_of(card).load(weights, card), card, reference)
        advance("checking parity")
        sample = load_sample(card, weights, data)
        checks = check_parity(
            PackedGraph(path), StockGraph(reference, card), card, sample, lambda: advance("checking parity")
        )
    return Exported(card, folder, checks)


def _check_unchanged(folder: Path, graph: Path) -> None:
    try:
        record = json.loads((folder / EXPORT_FILE).read_text())
        found = sha256_of(graph)
    except (OSError, json.JSONDecodeError) as error:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"unreadable {EXPORT_FILE} or graph ({error})",
            wanted="a model written by `skillserve export`",
            fix="Export the model again: skillserve export WEIGHTS",
        ) from error
    if found != record.get("graph_sha256"):
        raise RepositoryError(
            f"graph `{graph}`",
            got=f"SHA-256 {found[:12]}",
            wanted=f"{str(record.get('graph_sha256'))[:12]} as its export.json says",
            fix="The file was changed after it was gated. Export the model again: skillserve export WEIGHTS",
        )


def _probe(card: ModelCard, packed: PackedGraph, sample: ParitySample) -> Probe:
    sequences = sorted(sample.sequences, key=len)[:_PROBE_SEQUENCES]
    rows = packed.run(sequences).reshape(len(sequences), -1)[:, :_PROBE_NUMBERS]
    request = pack(sequences)
    return Probe(
        model=MODEL_NAMES[card.role],
        output=OUTPUT_NAMES[card.role],
        input_ids=tuple(request.input_ids[0].tolist()),
        seq_lens=tuple(request.seq_lens[0].tolist()),
        expected=tuple(tuple(round(float(x), 6) for x in row) for row in rows),
        tolerance=PROBE_TOLERANCE * max(1.0, float(np.abs(rows).max())),
    )


def _write_warmup(folder: Path, probe: Probe) -> None:
    folder.mkdir()
    tensors = {INPUT_IDS: probe.input_ids, SEQ_LENS: probe.seq_lens, ATTENTION_MASK: (1,) * len(probe.input_ids)}
    for name, values in tensors.items():
        (folder / name).write_bytes(np.asarray(values, np.int32).tobytes())


def _record(settings: ExportSettings, layout: Layout, graph: Path, checks: list[Check]) -> dict[str, object]:
    return {
        "layout": layout,
        "attention_core": settings.attention_core if layout == "packed" else None,
        "precision": "fp32",
        "graph_sha256": sha256_of(graph),
        "checks": [check.to_dict() for check in checks],
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("skillserve", "torch", "optimum", "onnx", "onnxruntime", "transformers")
            },
        },
    }
