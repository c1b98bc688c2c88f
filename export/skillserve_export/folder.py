"""Model folders, written whole.

<repository>/skill_embedder/
├── config.pbtxt      what Triton reads
├── card.json         what clients read
├── tokenizer.json
├── probe.json        a known question with its answer, for health checks
├── export.json       how the graph was made, and the gate's figures
├── warmup/           tensors of whole texts, run before the model is declared ready
└── 1/
    ├── model.onnx
    └── model.onnx.data   its weights, where they are too large for one file
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from skillserve.card import CARD_FILE, ModelCard, read_card
from skillserve.probe import PROBE_FILE, Probe
from skillserve.publish import published_folder
from skillserve.settings import ExportSettings
from skillserve.tensors import MODEL_NAMES, OUTPUT_NAMES, Ids, Packed, Precision, Role, pack
from skillserve_export.config import WARMUP_FOLDER, Stamp, model_config, to_pbtxt, warmup_tensors
from skillserve_export.files import move_graph
from skillserve_export.parity import Check
from skillserve_export.profiles import PROFILES_FILE, Profiles
from skillserve_export.record import EXPORT_FILE, ExportRecord, digests
from skillserve_export.sample import ParitySample
from skillserve_export.served import ServedGraph, TokenGraph
from skillserve_export.tensorrt_config import mask_file
from skillserve_export.verdict import Verdict

__all__ = ["Draft", "probe_of", "warmup_of", "write_folder"]

_PROBE_NUMBERS = 5
_WARMUP_SEQUENCES = 2
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A graph that passed."""

    role: Role
    path: Path
    probe: Probe
    warmup: Packed
    stamp: Stamp
    checks: list[Check]
    verdict: Verdict | None


def write_folder(
    draft: Draft, card: ModelCard, weights: Path, settings: ExportSettings, profiles: Profiles | None
) -> Path:
    """Write a graph that passed as a model folder of the settings' repository, with card and tokenizer of `weights`."""
    target = settings.repository / MODEL_NAMES[draft.role]
    with published_folder(target) as folder:
        (folder / str(settings.version)).mkdir()
        move_graph(draft.path, folder / str(settings.version))
        for name in (CARD_FILE, "tokenizer.json"):
            shutil.copyfile(weights / name, folder / name)
        config = model_config(card, settings, draft.stamp, draft.warmup, profiles)
        (folder / "config.pbtxt").write_text(to_pbtxt(config))
        (folder / PROBE_FILE).write_text(draft.probe.model_dump_json(indent=1) + "\n")
        _write_warmup(folder / WARMUP_FOLDER, warmup_tensors(draft.stamp.layout, draft.warmup), profiles)
        if profiles is not None:
            (folder / PROFILES_FILE).write_text(profiles.model_dump_json(indent=1) + "\n")
        record = _record(settings, draft.stamp, folder, draft.checks)
        (folder / EXPORT_FILE).write_text(record.model_dump_json(indent=1) + "\n")
    return target


def probe_of(role: Role, graph: ServedGraph, sample: ParitySample, precision: Precision) -> Probe:
    """A question whose answer is known from now on: the brief sequences of the sample."""
    sequences = list(sample.brief)
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


def warmup_of(sample: ParitySample) -> Packed:
    """The shortest whole sequences of the sample: the first request finds memory for texts of its kind."""
    return pack(sorted(sample.sequences, key=len)[:_WARMUP_SEQUENCES])


def _write_warmup(folder: Path, tensors: Mapping[str, Ids], profiles: Profiles | None) -> None:
    folder.mkdir()
    masks = {mask_file(end): np.ones(end, np.int32) for end in (() if profiles is None else profiles.ends)}
    for name, values in {**tensors, **masks}.items():
        (folder / name).write_bytes(values.astype(np.int32, copy=False).tobytes())


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
