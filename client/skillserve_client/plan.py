"""The two-stage search as one plan, without input or output.

    query → token ids → embed → candidates from the index → pairs → rerank → probability → hits, or abstained

Where the bundle keeps token embeddings, the request is read instead of pairs, see `skillserve_client.reranking`.

The plan is a generator. It yields `Step`s (sequences to be inferred), is sent arrays or has the server's error
thrown into it, and returns the `Answer`. Every decision is made here, once, for the blocking and the asyncio
searcher.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from skillserve.errors import DeadlineExceeded, RepositoryError, ServerError, SkillserveError
from skillserve.framing import CutText
from skillserve.records import Answer, Hit
from skillserve.settings import SearchSettings
from skillserve.tensors import Ids, Role
from skillserve_client.abstention import Verdict, judge
from skillserve_client.bundle import Bundle
from skillserve_client.calibration import NUM_BACKGROUND
from skillserve_client.corpus import Candidates
from skillserve_client.reranking import rerank
from skillserve_client.wire import Floats

__all__ = ["DEFAULT_DEPTH", "FAILURES", "Plan", "Step", "choose_depth", "order_reranked", "plan_search", "proceed"]

DEFAULT_DEPTH = 20
"""Candidates that are reranked where neither the caller nor the bundle's measurement says otherwise."""

FAILURES = (ServerError, RepositoryError)
"""What an inference may raise; RepositoryError when a model was unloaded meanwhile."""

_LEAST_RERANK_S = 0.002
"""Less time than this before the deadline is not worth loading the server: nobody would wait for the answer."""


@dataclass(frozen=True, slots=True)
class Step:
    """An inference that the plan asks for."""

    role: Role
    sequences: Sequence[Ids]
    deadline: float | None = None
    """Moment on the monotonic clock; None leaves the client its own timeout."""

    @property
    def timeout_s(self) -> float | None:
        """Time left for this step, now."""
        return None if self.deadline is None else self.deadline - time.monotonic()


Plan = Generator[Step, Floats, Answer]


def proceed(plan: Plan, outcome: Floats | SkillserveError | None) -> Step | Answer:
    """Hand the plan the outcome of its last step (None at the start); returns the next step, or the answer."""
    try:
        if outcome is None:
            return next(plan)
        if isinstance(outcome, SkillserveError):
            return plan.throw(outcome)
        return plan.send(outcome)
    except StopIteration as done:
        answer: Answer = done.value
        return answer


def plan_search(bundle: Bundle, query: str, settings: SearchSettings, *, started: float | None = None) -> Plan:
    """The steps of one search. Raises QueryError for a blank query, and the server's error if embedding fails.

    ConfigError for a lexical weight or a namespace that the bundle cannot serve. A request and its parts are embedded
    together.

    It begins at `started`, a moment on the monotonic clock, or with its first step. The deadline bounds both
    inferences. A reranking that would pass it is left out; without an embedding there is nothing to answer with, which
    is DeadlineExceeded.
    """
    corpus, watch = bundle.corpus, _Stopwatch(time.monotonic() if started is None else started)
    deadline = None if settings.deadline_ms is None else watch.started + settings.deadline_ms / 1000
    depth, reason = choose_depth(bundle, settings.rerank_depth)
    weights = corpus.chosen(settings)
    pieces = weights.pieces(query)
    ((read, *parts),) = corpus.embedder.queries_in_pieces([pieces])
    pair_side = corpus.reranker.query(query) if corpus.reranker is not None and depth else None
    notes = [*([reason] if reason else []), *_truncation(read, parts, pair_side)]
    watch.lap("tokenise")

    try:
        vectors = yield Step("embedder", [cut.ids for cut in (read, *parts)], deadline)
    except DeadlineExceeded as error:
        raise (error if deadline is None else _too_late("embedding the request", error.got)) from error
    watch.lap("embed")

    most = max(settings.candidates, settings.top_k, depth, NUM_BACKGROUND)
    (candidates,) = corpus.candidates([vectors], [pieces], most, weights, namespace=settings.namespace)
    watch.lap("candidates")

    status: Literal["ok", "degraded", "abstained"] = "ok"
    scores = np.empty(0, np.float32)
    if pair_side is not None:
        try:
            if deadline is not None and deadline - time.monotonic() < _LEAST_RERANK_S:
                raise _too_late("reranking", "no time left")
            reranking = rerank(corpus, pair_side.ids, candidates.rows[:depth].tolist())
            logits = reranking.logits((yield Step(corpus.second_stage, reranking.sequences, deadline)))
            scores = corpus.final_scores(logits, candidates.scores[:depth])
        except FAILURES as error:
            status = "degraded"
            why = _why(error, corpus.second_stage, settings.deadline_ms)
            notes.append(f"not reranked, this is the order of the first stage: {why}")
        watch.lap("rerank")
    reranked = len(scores) > 0
    took_part: tuple[Role, ...] = ("embedder", "reranker") if reranked else ("embedder",)
    verdict = judge(bundle, scores, candidates, weights=weights, settings=settings)
    notes += verdict.notes
    hits = _hits(bundle, candidates, scores, verdict, settings.top_k)
    if verdict.abstains:
        status = "abstained"
    return Answer(
        status=status,
        hits=() if verdict.abstains else hits,
        near_misses=hits if verdict.abstains else (),
        probability=verdict.probability,
        reranked=reranked,
        notes=tuple(notes),
        bundle=bundle.version,
        digests={role: bundle.digests[role] for role in took_part},
        timings_ms=watch.stop(),
    )


def choose_depth(bundle: Bundle, wanted: int | None) -> tuple[int, str | None]:
    """How many candidates to rerank, and the reason where it is not simply what was asked for."""
    if bundle.corpus.reranker is None:
        return 0, None if wanted == 0 else "not reranked: this bundle was built without a reranker"
    if wanted is not None:
        return wanted, None
    quality = bundle.quality
    if quality is not None and quality.two_stage is not None and quality.rerank_helps is False:
        metric = f"ndcg@{quality.k}"
        return 0, (
            f"not reranked: over {quality.requests} requests reranking lowered NDCG@{quality.k} "
            f"from {quality.first_stage[metric]:.4f} to {quality.two_stage[metric]:.4f}; "
            "--rerank-depth 20 turns it on all the same"
        )
    return DEFAULT_DEPTH, None


def order_reranked(scores: Floats, num_candidates: int) -> npt.NDArray[np.int64]:
    """Candidate positions, best first: the reranked ones by score (ties as they stood), then the rest as they stood."""
    first = np.argsort(-scores, kind="stable")
    return np.concatenate([first, np.arange(len(scores), num_candidates)])


class _Stopwatch:
    """Milliseconds per stage."""

    def __init__(self, started: float) -> None:
        self.started = self._lap = started
        self._timings_ms: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self._timings_ms[stage] = round((now - self._lap) * 1000, 3)
        self._lap = now

    def stop(self) -> dict[str, float]:
        return {**self._timings_ms, "total": round((time.monotonic() - self.started) * 1000, 3)}


def _hits(bundle: Bundle, candidates: Candidates, scores: Floats, verdict: Verdict, top_k: int) -> tuple[Hit, ...]:
    hits: list[Hit] = []
    for rank, place in enumerate(order_reranked(scores, len(candidates.rows))[:top_k].tolist(), 1):
        skill_id, name, description = bundle.corpus.skills.heading(int(candidates.rows[place]))
        reranked = place < len(scores)
        score = float(scores[place] if reranked else candidates.scores[place])
        hits.append(
            Hit(
                rank=rank,
                skill_id=skill_id,
                name=name,
                description=description,
                score=score,
                similarity=float(candidates.similarities[place]),
                reranked=reranked,
                # A reranked answer ends in hits that were not: their first-stage scores are no final ones.
                probability=verdict.of_hit(score) if reranked == (len(scores) > 0) else None,
            )
        )
    return tuple(hits)


def _truncation(read: CutText, parts: Sequence[CutText], pair_side: CutText | None) -> list[str]:
    """What the models did not read of the request."""
    notes = []
    for role, cut, beside in (("embedder", read, _parts_read(read, parts)), ("reranker", pair_side, "")):
        if cut is not None and cut.num_cut:
            about = "about " if cut.estimated else ""
            kept = f"the {role} read its first {cut.num_kept} tokens, {about}{cut.num_cut} were cut"
            notes.append(f"the request is long: {kept}{beside}")
    return notes


def _parts_read(read: CutText, parts: Sequence[CutText]) -> str:
    """What the embedder read beside the beginning; the whole stands in for a part without readable text."""
    if not parts:
        return ""
    num_cut = sum(part.num_cut > 0 for part in parts if part is not read)
    how = f"but cut {num_cut} of them, too" if num_cut else "and cut none of them"
    return f"; it also read each of the request's {len(parts)} parts, {how}"


def _why(error: SkillserveError, role: Role, deadline_ms: float | None) -> str:
    if isinstance(error, DeadlineExceeded) and deadline_ms is not None:
        return f"the deadline of {deadline_ms:g} ms was too near"
    return f"the {role.replace('_', ' ')} failed ({type(error).__name__}: {error.got})"


def _too_late(subject: str, got: str) -> DeadlineExceeded:
    return DeadlineExceeded(subject, got=got, wanted="an answer in time", fix="Allow more time: --deadline-ms")
