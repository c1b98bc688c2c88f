"""From weights to a servable model in each of its roles: export, gate, write. A failed gate writes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skillserve.card import ModelCard, read_card
from skillserve.errors import RepositoryError
from skillserve.pairs import Remembered
from skillserve.settings import ExportSettings
from skillserve.tensors import MODEL_NAMES, Layout, Precision, Role
from skillserve_export.config import Stamp, TokenRows
from skillserve_export.families import family_of
from skillserve_export.folder import Draft, probe_of, warmup_of, write_folder
from skillserve_export.gate import RankGate
from skillserve_export.graph import export_packed, export_padded, export_stock
from skillserve_export.late_stock import open_stock
from skillserve_export.opened import GRAPHS, check_servable, open_graph, open_recorded
from skillserve_export.parity import Check, check_parity, require
from skillserve_export.precision import lower, require_runnable
from skillserve_export.profiles import Profiles
from skillserve_export.record import GRAPH_FILE, ExportRecord, read_record
from skillserve_export.roles import roles_of, roles_to_verify
from skillserve_export.running_sums import sums_as_products
from skillserve_export.sample import ParitySample, load_sample
from skillserve_export.scorers import GraphScorer
from skillserve_export.served import TokenGraph
from skillserve_export.stock import StockGraph
from skillserve_export.tensorrt_profiles import profiles_for, require_tensorrt
from skillserve_export.verdict import Verdict

__all__ = ["Exported", "export_model", "num_steps", "verify_model"]


_CHECKS = 7
"""Steps of checking a graph, its opening included."""


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
        first, *others = [
            Exported(
                card,
                write_folder(draft, card, weights, settings, profiles),
                draft.checks,
                draft.verdict,
                profiles,
            )
            for draft in drafts
        ]
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
    records = {role: _record_of(role, card, weights, settings) for role in roles_to_verify(card, settings)}
    gates = {role: _required(gate, settings, data, card, record.precision) for role, record in records.items()}
    with tempfile.TemporaryDirectory(prefix="skillserve-verify-") as scratch_name:
        subject = _Subject.read(weights, card, Path(scratch_name), data, advance)
        first, *others = [
            _verified(subject, role, record, settings, gates[role], advance) for role, record in records.items()
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


def _drafted(
    subject: _Subject,
    role: Role,
    settings: ExportSettings,
    layout: Layout,
    scratch: Path,
    gate: RankGate | None,
    advance: Callable[[str], None],
) -> Draft:
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
    digest = check_servable(path, precision, settings).digest()
    verdict = None
    if gate is not None:
        scorer = GraphScorer(graph=graph, card=card, layout=layout, precision=precision, graph_digest=digest)
        verdict = _judged(subject, role, scorer, gate)
        verdict.require(fix="Nothing was written. Choose another precision, or set its limits in the card.")
    return Draft(
        role=role,
        path=path,
        probe=probe_of(role, graph, subject.sample, precision),
        warmup=warmup_of(subject.sample),
        stamp=Stamp(layout=layout, precision=precision, graph_digest=digest, tokens=tokens),
        checks=checks,
        verdict=verdict,
    )


def _record_of(role: Role, card: ModelCard, weights: Path, settings: ExportSettings) -> ExportRecord:
    """The record of a folder of these weights; RepositoryError for one of others."""
    folder = settings.repository / MODEL_NAMES[role]
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
    record: ExportRecord,
    settings: ExportSettings,
    gate: RankGate | None,
    advance: Callable[[str], None],
) -> Exported:
    """One folder beside its weights."""
    advance("checking parity")
    card, tokens = subject.card, subject.tokens(role)
    folder = settings.repository / MODEL_NAMES[role]
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


def num_steps(roles: Sequence[Role], *, verified: bool = False) -> int:
    """How often `export_model`, or `verify_model`, calls `advance`: once for the reference, the rest for each role."""
    return 1 + (_CHECKS if verified else _CHECKS + 1) * len(roles)


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
