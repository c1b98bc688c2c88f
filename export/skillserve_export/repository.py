"""From a weights folder to a servable model folder: export, gate, write. A failed gate writes nothing.

<repository>/skill_embedder/
├── config.pbtxt      what Triton reads
├── card.json         what clients read
├── tokenizer.json
├── probe.json        a known question with its answer, for health checks
├── export.json       how the graph was made, and the gate's figures
├── warmup/           the probe's tensors, run before the model is declared ready
└── 1/
    ├── model.onnx
    └── model.onnx.data   its weights, where they are too large for one file
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from skillserve.card import CARD_FILE, ModelCard, read_card
from skillserve.errors import RepositoryError
from skillserve.pairs import Remembered
from skillserve.probe import PROBE_FILE, Probe
from skillserve.publish import published_folder
from skillserve.settings import ExportSettings
from skillserve.tensors import (
    MODEL_NAMES,
    OUTPUT_NAMES,
    Layout,
    Precision,
    Role,
    pack,
)
from skillserve_export.config import WARMUP_FOLDER, Stamp, TokenRows, model_config, to_pbtxt, warmup_tensors
from skillserve_export.families import family_of
from skillserve_export.files import move_graph
from skillserve_export.gate import RankGate
from skillserve_export.graph import export_packed, export_padded, export_stock
from skillserve_export.late_stock import open_stock
from skillserve_export.opened import GRAPHS, check_servable, open_graph, open_recorded
from skillserve_export.parity import Check, check_parity, require
from skillserve_export.precision import lower, require_runnable
from skillserve_export.profiles import PROFILES_FILE, Profiles
from skillserve_export.record import EXPORT_FILE, GRAPH_FILE, ExportRecord, digests, read_record
from skillserve_export.running_sums import sums_as_products
from skillserve_export.sample import ParitySample, load_sample
from skillserve_export.scorers import GraphScorer
from skillserve_export.served import ServedGraph, TokenGraph
from skillserve_export.tensorrt_config import mask_file
from skillserve_export.tensorrt_profiles import profiles_for, require_tensorrt
from skillserve_export.verdict import Verdict

__all__ = ["NUM_STEPS", "Exported", "export_model", "roles_of", "verify_model"]

NUM_STEPS = 9
"""How often `export_model` calls `advance`: load, graph, stock, then six checks, or another precision and five."""

_PROBE_SEQUENCES = 2
_PROBE_NUMBERS = 5
PROBE_TOLERANCE: dict[Precision, float] = {
    "fp32": 5e-3,
    "fp16": 5e-3,
    "bf16": 2e-2,
    "int8": 2e-2,
    "w8": 2e-2,
    "w4": 2e-2,
}
"""Wide enough for another processor's rounding, narrow enough for wrong weights: numbers of a unit vector of 384
dimensions are 0.05 on average. In int8 a last bit that another runtime adds otherwise turns some roundings over: rows
of all-MiniLM-L6-v2 differed by up to 5e-3 between two releases of ONNX Runtime."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export or a verification found."""

    card: ModelCard
    folder: Path | None
    """None of what a server was asked."""
    checks: list[Check]
    verdict: Verdict | None = None
    """The rank gate's, where it was asked or had to be."""
    profiles: Profiles | None = None
    """Of an export for TensorRT."""


def export_model(
    weights: Path,
    settings: ExportSettings,
    *,
    data: Path | None = None,
    layout: Layout = "packed",
    role: Role | None = None,
    gate: RankGate | None = None,
    advance: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Export, gate and write one model; raises ParityError or CardError and then leaves the repository alone.

    `role` is what it is served as, one of `roles_of`; None is that of its weights.

    With `gate`, and below float32 always, rankings are judged as well, and the report is written also where the graph
    is not.
    """
    precision = settings.precision
    require_tensorrt(settings, layout)
    require_runnable(precision, settings.device)
    card = read_card(weights, verify_weights=True)
    role = role or card.role
    gate = _required(gate, settings, data, card, precision)
    profiles = profiles_for(card, weights, settings, data)
    sample = load_sample(card, weights, data)
    with tempfile.TemporaryDirectory(prefix="skillserve-export-") as scratch_name:
        scratch = Path(scratch_name)
        model = family_of(card).load(weights, card)
        advance(f"exporting the {layout} graph")
        _export_graph(model, card, weights, role, settings, layout, scratch / GRAPH_FILE)
        if precision != "fp32":
            advance(f"rewriting it in {precision}")
            words = load_sample(card, weights, None)
            lower(scratch / GRAPH_FILE, precision, card, words.sequences, GRAPHS[layout].feeds)
        advance("exporting the reference")
        export_stock(model, card, scratch / "stock.onnx")
        advance("checking parity")
        tokens = _token_rows(model, card, weights) if role == "token_embedder" else None
        graph = open_graph(scratch / GRAPH_FILE, layout, settings.device, tokens and tokens.interaction)
        stock = open_stock(scratch / "stock.onnx", card, weights)
        checks = check_parity(graph, stock, card, sample, lambda: advance("checking parity"), precision=precision)
        require(checks, f"{layout} {precision} {graph.title} of `{card.name}`", fix=_advice(precision))
        verdict = None
        if gate is not None:
            digest = check_servable(scratch / GRAPH_FILE, precision, settings).digest()
            _remember(graph)
            scorer = GraphScorer(graph=graph, card=card, layout=layout, precision=precision, graph_digest=digest)
            verdict = gate.judge(card, weights, scorer, stock)
            verdict.require(fix="Nothing was written. Choose another precision, or set its limits in the card.")
        probe = _probe(role, graph, sample, precision)
        folder = settings.repository / MODEL_NAMES[role]
        with published_folder(folder) as draft:
            (draft / str(settings.version)).mkdir()
            move_graph(scratch / GRAPH_FILE, draft / str(settings.version))
            checked = check_servable(draft / str(settings.version) / GRAPH_FILE, precision, settings)
            stamp = Stamp(layout=layout, precision=precision, graph_digest=checked.digest(), tokens=tokens)
            for name in (CARD_FILE, "tokenizer.json"):
                shutil.copyfile(weights / name, draft / name)
            (draft / "config.pbtxt").write_text(to_pbtxt(model_config(card, settings, stamp, probe, profiles)))
            (draft / PROBE_FILE).write_text(probe.model_dump_json(indent=1) + "\n")
            _write_warmup(draft / WARMUP_FOLDER, warmup_tensors(layout, probe), profiles)
            if profiles is not None:
                (draft / PROFILES_FILE).write_text(profiles.model_dump_json(indent=1) + "\n")
            record = _record(settings, stamp, draft, checks)
            (draft / EXPORT_FILE).write_text(record.model_dump_json(indent=1) + "\n")
    return Exported(card, folder, checks, verdict, profiles)


def verify_model(
    weights: Path,
    settings: ExportSettings,
    *,
    data: Path | None = None,
    role: Role | None = None,
    gate: RankGate | None = None,
    advance: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Check the graph that stands in the repository against its weights; writes nothing but the report of `gate`.

    Rankings are judged if the graph reproduces its weights, and `gate` is given or the graph is below float32.
    """
    card = read_card(weights, verify_weights=True)
    role = role or card.role
    folder = settings.repository / MODEL_NAMES[role]
    record = read_record(folder)
    if record.digest != card.digest:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"a graph of {record.digest[:12]}",
            wanted=f"one of {card.short_digest}, the weights in `{weights}`",
            fix=f"Export them: skillserve export {weights} --repository {settings.repository}",
        )
    gate = _required(gate, settings, data, card, record.precision)
    sample = load_sample(card, weights, data)
    with tempfile.TemporaryDirectory(prefix="skillserve-verify-") as scratch_name:
        reference = Path(scratch_name) / "stock.onnx"
        advance("exporting the reference")
        model = family_of(card).load(weights, card)
        export_stock(model, card, reference)
        advance("checking parity")
        how = _token_rows(model, card, weights).interaction if role == "token_embedder" else None
        candidate = open_recorded(record, folder, card, settings, how)
        stock = open_stock(reference, card, weights)
        checks = check_parity(
            candidate.graph, stock, card, sample, lambda: advance("checking parity"), precision=record.precision
        )
        verdict = None
        if gate is not None and all(check.passed for check in checks):
            _remember(candidate.graph)
            verdict = gate.judge(card, weights, candidate, stock)
    return Exported(card, folder, checks, verdict)


def roles_of(card: ModelCard, layout: Layout) -> tuple[Role, ...]:
    """What weights are served as: a reranker by late interaction, in the packed layout, also as a token embedder."""
    return (card.role, "token_embedder") if card.score_kind == "max_sim" and layout == "packed" else (card.role,)


def _export_graph(
    model: Any, card: ModelCard, weights: Path, role: Role, settings: ExportSettings, layout: Layout, output: Path
) -> None:
    """The float32 graph of a layout, as its runtime takes it."""
    family = family_of(card)
    if layout == "packed":
        wrap = family.token_embedder if role == "token_embedder" else family.packed
        module = wrap(model, card, weights, settings.max_request_tokens)
        export_packed(module, card, role, settings.attention_core, output)
    else:
        export_padded(family.padded(model, card, weights), card, output)
    if settings.runtime != "onnxruntime":
        sums_as_products(output)


def _remember(graph: ServedGraph) -> None:
    """Behind the parity gate no text need be read twice; whether company changes it was seen there."""
    if isinstance(graph, TokenGraph):
        graph.remembered = Remembered()


def _token_rows(model: Any, card: ModelCard, weights: Path) -> TokenRows:
    return TokenRows(int(model.config.hidden_size), family_of(card).interaction(card, weights))


def _required(
    gate: RankGate | None, settings: ExportSettings, data: Path | None, card: ModelCard, precision: Precision
) -> RankGate | None:
    """The gate that was asked for, or the one that a precision has to pass unasked; UsageError if it cannot judge."""
    if gate is None and precision != "fp32":
        gate = RankGate(settings=settings, data=data)
    if gate is not None:
        gate.require(card, precision)
    return gate


def _advice(precision: Precision) -> str:
    if precision == "fp32":
        return "Nothing was written. Export again; if it persists, this architecture or runtime is not supported."
    return "Nothing was written. Choose another precision: --precision fp32 is exact."


def _probe(role: Role, graph: ServedGraph, sample: ParitySample, precision: Precision) -> Probe:
    sequences = sorted(sample.sequences, key=len)[:_PROBE_SEQUENCES]
    request = pack(sequences)
    if isinstance(graph, TokenGraph):
        rows = graph.run_raw(*graph.feeds(sequences).values())[:, :_PROBE_NUMBERS]
    else:
        rows = graph.run(sequences).reshape(len(sequences), -1)[:, :_PROBE_NUMBERS]
    return Probe(
        model=MODEL_NAMES[role],
        output=OUTPUT_NAMES[role],
        input_ids=tuple(request.input_ids[0].tolist()),
        seq_lens=tuple(request.seq_lens[0].tolist()),
        expected=tuple(tuple(round(float(x), 6) for x in row) for row in rows),
        tolerance=PROBE_TOLERANCE[precision] * max(1.0, float(np.abs(rows).max())),
    )


def _write_warmup(folder: Path, tensors: Mapping[str, Sequence[int]], profiles: Profiles | None) -> None:
    folder.mkdir()
    masks = {mask_file(end): (1,) * end for end in (() if profiles is None else profiles.ends)}
    for name, values in {**tensors, **masks}.items():
        (folder / name).write_bytes(np.asarray(values, np.int32).tobytes())


def _record(settings: ExportSettings, stamp: Stamp, folder: Path, checks: list[Check]) -> ExportRecord:
    packages = ("skillserve", "torch", "optimum", "onnx", "onnxruntime", "transformers")
    return ExportRecord(
        digest=read_card(folder).digest,
        layout=stamp.layout,
        attention_core=settings.attention_core if stamp.layout == "packed" else None,
        precision=stamp.precision,
        runtime=settings.runtime,
        files=digests(folder),
        checks=[check.to_dict() for check in checks],
        versions={"python": platform.python_version(), **{name: version(name) for name in packages}},
    )
