"""The rank gate: does a candidate order skills as its reference does?

Rounding moves every score a little; what matters is whether users get other skills. So a graph of any precision, or a
server that runs one, is judged by its rankings beside those of the float32 stock export on the same sequences.

    top-1 agreement   share of requests whose first skill is the reference's
    top-10 overlap    mean share of the first ten that are the reference's first ten
    NDCG@10           difference in points, by the lower end of its paired 95 % bootstrap interval

The limits stand in the model card, see `skillserve.gate`. How far scores drift is reported and not judged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skillserve.card import ModelCard, read_card
from skillserve.errors import UsageError
from skillserve.gate import Gate
from skillserve.runs import require_writable
from skillserve.scoring import Rows, Scorer, open_server
from skillserve.settings import ClientSettings, ExportSettings
from skillserve.tensors import MODEL_NAMES, Precision, Role
from skillserve_export.families import family_of
from skillserve_export.gate_report import REPORT_FILE, write_report
from skillserve_export.gate_requests import GateRequests, embedder_folder, load_requests
from skillserve_export.graph import export_stock
from skillserve_export.late_stock import open_stock
from skillserve_export.parity import TOP_K, Check, where_overflows
from skillserve_export.ranks import RankFigures, measure_ranks
from skillserve_export.sample import tokens_of_scores
from skillserve_export.scorers import GraphScorer, StockScorer
from skillserve_export.stock import StockGraph
from skillserve_export.verdict import Verdict

__all__ = ["SAMPLE", "RankGate", "Tell", "judge_ranks", "judge_server", "judged_data"]

SAMPLE = Path("examples/sample")
"""In a clone."""

Tell = Callable[[str], None]
"""Called with what is being done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankGate:
    """What a gate is asked with, and where its report goes; whoever holds candidate and reference calls `judge`."""

    settings: ExportSettings
    data: Path | None = None
    """Folder in SkillRet's layout; None takes what `judged_data` finds, or random words, which nobody judged."""
    run: Path | None = None
    """Candidates for a reranker; None takes those of the repository's embedder."""
    report: Path | None = None
    """Folder; None puts it beside the repository, into one of the model's own."""
    role: Role | None = None
    """Of the model that is judged; None is that of its weights. A token embedder's report is a folder in `report`."""
    tell: Tell = lambda _: None

    def __post_init__(self) -> None:
        require_writable((self.report or self._reports) / REPORT_FILE, option="--report")

    def require(self, card: ModelCard, precision: Precision) -> None:
        """Refuse, before any work, what the gate will not be able to judge; UsageError."""
        if judged_data(self.data, precision) and self.run is None and card.role == "reranker":
            embedder_folder(self.settings)

    @property
    def _reports(self) -> Path:
        return self.settings.repository.absolute().parent / "reports"

    def judge(self, card: ModelCard, weights: Path, candidate: Scorer, stock: StockGraph) -> Verdict:
        """Compare, write the report, return the verdict; only `Verdict.require` raises for a failed gate."""
        self.tell("reading the gate's requests")
        data = judged_data(self.data, candidate.precision)
        requests = load_requests(card, weights, self.settings, data=data, run=self.run)
        reference = StockScorer(graph=stock, tokens=tokens_of_scores(card, weights, requests.sequences))
        verdict = judge_ranks(card, candidate, reference, requests, self.tell)
        model = MODEL_NAMES[self.role or card.role]
        own = f"{model}-{candidate.precision}-{card.short_digest}"
        if "server" in candidate.facts:
            own += "-server"
        folder = self.report or self._reports / own
        if self.report is not None and self.role == "token_embedder":
            folder = self.report / model
        write_report(folder, verdict)
        return verdict.reported(folder)


def judged_data(data: Path | None, precision: Precision) -> Path | None:
    """The requests that a precision is judged on; UsageError if it needs some and there are none.

    Random words are about as near to one skill as to the next: roundings that real requests survive reorder them.
    """
    if data is not None or precision == "fp32":
        return data
    if SAMPLE.is_dir():
        return SAMPLE
    raise UsageError(
        f"rank gate of precision `{precision}`",
        got=f"no --data, and no `{SAMPLE}` here",
        wanted="judged requests: what rounding costs is seen in their rankings",
        fix="Run it again with --data FOLDER, in SkillRet's layout: your requests, or `examples/sample` of a clone.",
    )


def judge_ranks(
    card: ModelCard, candidate: Scorer, reference: Scorer, requests: GateRequests, tell: Tell = lambda _: None
) -> Verdict:
    """Score all sequences with both and compare their rankings under the card's limits."""
    found = _score(candidate, requests, "candidate", tell)
    wanted = _score(reference, requests, "reference", tell)
    gate = card.gate(candidate.precision)
    figures = None
    checks = [_finite(candidate, requests, found, wanted)]
    if checks[0].passed:
        tell("comparing rankings")
        figures = measure_ranks(requests, found, wanted)
        checks += _checks(figures, gate)
    return Verdict(
        card=card,
        candidate=candidate,
        reference=reference,
        requests=requests,
        gate=gate,
        checks=checks,
        figures=figures,
    )


def judge_server(weights: Path, client: ClientSettings, gate: RankGate, *, advance: Tell = lambda _: None) -> Verdict:
    """Compare what a running server answers with its weights; a server of another digest is a RepositoryError."""
    card = read_card(weights, verify_weights=True)
    with open_server(card, client) as server, tempfile.TemporaryDirectory(prefix="skillserve-gate-") as scratch:
        gate.require(card, server.precision)
        advance("exporting the reference")
        reference = Path(scratch) / "stock.onnx"
        export_stock(family_of(card).load(weights, card), card, reference)
        advance("comparing the server")
        return gate.judge(card, weights, server, open_stock(reference, card, weights))


def _score(scorer: Scorer, requests: GateRequests, role: str, tell: Tell) -> Rows:
    done, total = 0, len(requests.sequences)

    def count(num: int) -> None:
        nonlocal done
        done += num
        tell(f"{role}: {done:,} of {total:,} sequences")

    return scorer.score(requests.sequences, progress=count)


def _finite(candidate: Scorer, requests: GateRequests, found: Rows, wanted: Rows) -> Check:
    bad = [int((~np.isfinite(rows)).sum()) for rows in (found, wanted)]
    fits = found.shape == wanted.shape
    detail = f"{bad[0]} of the candidate's numbers and {bad[1]} of the reference's are not finite"
    if fits and bad[0] and isinstance(candidate, GraphScorer):
        detail += where_overflows(candidate.graph, requests.sequences, found)
    if not fits:
        detail += f"; shape {found.shape} for {wanted.shape}"
    return Check("finite scores", fits and not any(bad), float(sum(bad)), 0.0, detail)


def _checks(figures: RankFigures, gate: Gate) -> Sequence[Check]:
    num = len(figures.requests)
    same = sum(each.top1 for each in figures.requests)
    checks = [
        Check(
            "top-1 agreement",
            figures.top1 >= gate.min_top1,
            figures.top1,
            gate.min_top1,
            f"the same first skill for {same} of {num} requests, {figures.top1:.2%} (at least {gate.min_top1:.2%})",
        ),
        Check(
            f"top-{TOP_K} overlap",
            figures.overlap >= gate.min_overlap,
            figures.overlap,
            gate.min_overlap,
            f"{figures.overlap:.2%} of the first {TOP_K} are the same (at least {gate.min_overlap:.2%})",
        ),
    ]
    if figures.ndcg is not None:
        lost = figures.ndcg.difference
        low, mean, high = 100 * lost.low, 100 * lost.mean, 100 * lost.high
        checks.append(
            Check(
                f"NDCG@{TOP_K}",
                low >= -gate.max_ndcg_loss,
                low,
                -gate.max_ndcg_loss,
                f"{100 * figures.ndcg.candidate:.2f} beside {100 * figures.ndcg.reference:.2f}: {mean:+.2f} points, "
                f"95 % [{low:+.2f}, {high:+.2f}] (lower end at least {-gate.max_ndcg_loss:+.2f})",
            )
        )
    return checks
