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
from dataclasses import dataclass, replace
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
from skillserve_export.stock import StockGraph
from skillserve_export.tensorrt_config import mask_file
from skillserve_export.tensorrt_profiles import profiles_for, require_tensorrt
from skillserve_export.verdict import Verdict

__all__ = ["Exported", "export_model", "num_steps", "roles_of", "verify_model"]


_STEPS_OF_A_ROLE = 8

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
    also: tuple[Exported, ...] = ()
    """What else the same weights are served as."""


def export_model(
    weights: Path,
    settings: ExportSettings,
    *,
    data: Path | None = None,
    layout: Layout = "packed",
    gate: RankGate | None = None,
    advance: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Export, gate and write a model in all its roles; ParityError or CardError leaves the repository alone.

    With `gate`, and below float32 always, rankings are judged as well, and the report is written also where the graph
    is not.
    """
    require_tensorrt(settings, layout)
    require_runnable(settings.precision, settings.device)
    card = read_card(weights, verify_weights=True)
    gate = _required(gate, settings, data, card, settings.precision)
    profiles = profiles_for(card, weights, settings, data)
    with tempfile.TemporaryDirectory(prefix="skillserve-export-") as scratch_name:
        scratch = Path(scratch_name)
        subject = _Subject.read(weights, card, scratch, data, advance)
        drafts = [
            _drafted(subject, role, settings, layout, scratch / role, gate, advance) for role in roles_of(card, layout)
        ]
        # Nothing is written before all have passed.
        first, *others = [_published(subject, draft, settings, layout, profiles) for draft in drafts]
    return replace(first, also=tuple(others))


def verify_model(
    weights: Path,
    settings: ExportSettings,
    *,
    data: Path | None = None,
    gate: RankGate | None = None,
    advance: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Check the graphs that stand in the repository against their weights; writes nothing but the reports of `gate`.

    Rankings are judged if a graph reproduces its weights, and `gate` is given or the graph is below float32. Of roles
    beyond the weights' own those are checked that are there.
    """
    card = read_card(weights, verify_weights=True)
    folders = {role: settings.repository / MODEL_NAMES[role] for role in roles_of(card, "packed")}
    there = {role: folder for role, folder in folders.items() if role == card.role or folder.exists()}
    records = {role: _record_of(card, weights, folder, settings) for role, folder in there.items()}
    gates = {role: _required(gate, settings, data, card, record.precision) for role, record in records.items()}
    with tempfile.TemporaryDirectory(prefix="skillserve-verify-") as scratch_name:
        subject = _Subject.read(weights, card, Path(scratch_name), data, advance)
        first, *others = [
            _verified(subject, role, there[role], record, settings, gates[role], advance)
            for role, record in records.items()
        ]
    return replace(first, also=tuple(others))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """Weights, and everything that their graphs are judged by."""

    weights: Path
    card: ModelCard
    model: Any
    stock: StockGraph
    sample: ParitySample

    @classmethod
    def read(
        cls, weights: Path, card: ModelCard, scratch: Path, data: Path | None, advance: Callable[[str], None]
    ) -> _Subject:
        sample = load_sample(card, weights, data)
        advance("exporting the reference")
        model = family_of(card).load(weights, card)
        export_stock(model, card, scratch / "stock.onnx")
        stock = open_stock(scratch / "stock.onnx", card, weights)
        return cls(weights=weights, card=card, model=model, stock=stock, sample=sample)

    def tokens(self, role: Role) -> TokenRows | None:
        """What a token embedder gives; None for the other roles."""
        if role != "token_embedder":
            return None
        interaction = family_of(self.card).interaction(self.card, self.weights)
        return TokenRows(int(self.model.config.hidden_size), interaction)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A graph that passed."""

    role: Role
    path: Path
    graph: ServedGraph
    checks: list[Check]
    verdict: Verdict | None


def _drafted(
    subject: _Subject,
    role: Role,
    settings: ExportSettings,
    layout: Layout,
    scratch: Path,
    gate: RankGate | None,
    advance: Callable[[str], None],
) -> _Draft:
    """Export and gate one role; raises ParityError."""
    card, weights, precision = subject.card, subject.weights, settings.precision
    scratch.mkdir()
    path = scratch / GRAPH_FILE
    advance(f"exporting the {layout} graph")
    _export_graph(subject, role, settings, layout, path)
    if precision != "fp32":
        advance(f"rewriting it in {precision}")
        words = load_sample(card, weights, None)
        lower(path, precision, card, words.sequences, GRAPHS[layout].feeds)
    advance("checking parity")
    tokens = subject.tokens(role)
    graph = open_graph(path, layout, settings.device, tokens and tokens.interaction)
    checks = check_parity(
        graph, subject.stock, card, subject.sample, lambda: advance("checking parity"), precision=precision
    )
    require(checks, f"{layout} {precision} {graph.title} of `{card.name}`", fix=_advice(precision))
    verdict = None
    if gate is not None:
        digest = check_servable(path, precision, settings).digest()
        scorer = GraphScorer(graph=graph, card=card, layout=layout, precision=precision, graph_digest=digest)
        verdict = _judged(subject, role, scorer, gate)
        verdict.require(fix="Nothing was written. Choose another precision, or set its limits in the card.")
    return _Draft(role=role, path=path, graph=graph, checks=checks, verdict=verdict)


def _published(
    subject: _Subject, draft: _Draft, settings: ExportSettings, layout: Layout, profiles: Profiles | None
) -> Exported:
    """Write the folder of a graph that passed."""
    card, weights, precision = subject.card, subject.weights, settings.precision
    probe = _probe(draft.role, draft.graph, subject.sample, precision)
    target = settings.repository / MODEL_NAMES[draft.role]
    with published_folder(target) as folder:
        (folder / str(settings.version)).mkdir()
        move_graph(draft.path, folder / str(settings.version))
        checked = check_servable(folder / str(settings.version) / GRAPH_FILE, precision, settings)
        stamp = Stamp(
            layout=layout, precision=precision, graph_digest=checked.digest(), tokens=subject.tokens(draft.role)
        )
        for name in (CARD_FILE, "tokenizer.json"):
            shutil.copyfile(weights / name, folder / name)
        (folder / "config.pbtxt").write_text(to_pbtxt(model_config(card, settings, stamp, probe, profiles)))
        (folder / PROBE_FILE).write_text(probe.model_dump_json(indent=1) + "\n")
        _write_warmup(folder / WARMUP_FOLDER, warmup_tensors(layout, probe), profiles)
        if profiles is not None:
            (folder / PROFILES_FILE).write_text(profiles.model_dump_json(indent=1) + "\n")
        record = _record(settings, stamp, folder, draft.checks)
        (folder / EXPORT_FILE).write_text(record.model_dump_json(indent=1) + "\n")
    return Exported(card, target, draft.checks, draft.verdict, profiles)


def _record_of(card: ModelCard, weights: Path, folder: Path, settings: ExportSettings) -> ExportRecord:
    """The record of a folder of these weights; RepositoryError for one of others."""
    record = read_record(folder)
    if record.digest != card.digest:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"a graph of {record.digest[:12]}",
            wanted=f"one of {card.short_digest}, the weights in `{weights}`",
            fix=f"Export them: skillserve export {weights} --repository {settings.repository}",
        )
    return record


def _verified(
    subject: _Subject,
    role: Role,
    folder: Path,
    record: ExportRecord,
    settings: ExportSettings,
    gate: RankGate | None,
    advance: Callable[[str], None],
) -> Exported:
    """One folder beside its weights."""
    advance("checking parity")
    card, tokens = subject.card, subject.tokens(role)
    candidate = open_recorded(record, folder, card, settings, tokens and tokens.interaction)
    checks = check_parity(
        candidate.graph,
        subject.stock,
        card,
        subject.sample,
        lambda: advance("checking parity"),
        precision=record.precision,
    )
    verdict = None
    if gate is not None and all(check.passed for check in checks):
        verdict = _judged(subject, role, candidate, gate)
    return Exported(card, folder, checks, verdict)


def _judged(subject: _Subject, role: Role, candidate: GraphScorer, gate: RankGate) -> Verdict:
    """The rank gate's verdict; parity has seen whether company changes a text, so here none is read twice."""
    if isinstance(candidate.graph, TokenGraph):
        candidate.graph.remembered = Remembered()
    return replace(gate, role=role).judge(subject.card, subject.weights, candidate, subject.stock)


def roles_of(card: ModelCard, layout: Layout) -> tuple[Role, ...]:
    """What weights are served as: a reranker by late interaction, in the packed layout, also as a token embedder."""
    return (card.role, "token_embedder") if card.score_kind == "max_sim" and layout == "packed" else (card.role,)


def num_steps(card: ModelCard, layout: Layout = "packed") -> int:
    """How often `export_model` calls `advance`: for the reference, and for each role its graph and seven checks."""
    return 1 + _STEPS_OF_A_ROLE * len(roles_of(card, layout))


def _export_graph(subject: _Subject, role: Role, settings: ExportSettings, layout: Layout, output: Path) -> None:
    """The float32 graph of a layout, as its runtime takes it."""
    card, family = subject.card, family_of(subject.card)
    if layout == "packed":
        wrap = family.token_embedder if role == "token_embedder" else family.packed
        module = wrap(subject.model, card, subject.weights, settings.max_request_tokens)
        export_packed(module, card, role, settings.attention_core, output)
    else:
        export_padded(family.padded(subject.model, card, subject.weights), card, output)
    if settings.runtime != "onnxruntime":
        sums_as_products(output)


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
