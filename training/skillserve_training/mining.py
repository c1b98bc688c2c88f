"""Mining hard negatives: wrong skills that several systems rank high, without those that probably fit after all.

As SkillRet trains its reranker: from each system the wrong skills at ranks 21 to 60, merged, and from them 15 drawn
once for each request. Ranks count wrong skills only, so no gold and no held-out skill takes a place in the window.
Run files, servers and BM25 rank all skills of the train split, since the first two know no other pool; what is held out
is taken from their rankings before anything is counted. Embedders read the part that is trained on, once, for their
ranking and for the guards.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skillserve.config import MineSettings
from skillserve.console import progress
from skillserve.errors import CatalogueError
from skillserve.metrics import ranked
from skillserve.records import Run
from skillserve.systems import System
from skillserve_training.dataset import TrainingData
from skillserve_training.evaluate import Embedder
from skillserve_training.forward import embed_all
from skillserve_training.guards import Guard, Likeness, NameGuard, NearGoldGuard, OverlapGuard, ShareGuard
from skillserve_training.mined import NEGATIVE
from skillserve_training.systems import EmbedderSystem, TwoStageSystem

__all__ = ["Candidate", "merge", "mine"]

_TOP = "top"
"""Kind of a candidate that another system ranks above the window."""
_RRF = 60
"""Reciprocal rank fusion's constant (Cormack, Clarke, Büttcher, 2009)."""
_ROWS = 1024
"""Requests compared with all skills at once: bounds the memory of the similarities."""
_SPARE = 1.5
"""Systems rank so many times deeper than the window's end, since what is held out leaves the rankings."""
_PACKAGES = ("skillserve", "numpy", "torch", "transformers", "tokenizers", "bm25s", "pyarrow")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A wrong skill in the window of at least one system."""

    skill: int
    """Position among the part's skills."""
    ranks: tuple[int | None, ...]
    """Per system, counted from 1; None where it ranks the skill below the window."""


def mine(
    data: TrainingData, part: TrainingData, systems: Sequence[System], settings: MineSettings
) -> tuple[pa.Table, dict[str, Any]]:
    """Negatives for the requests of `part`, which is `data` or what a hold-out left of it to train on.

    Returns the rows of a file of mined negatives, and where they come from. CatalogueError if a system leaves out a
    request.
    """
    first, last = settings.window
    likeness_of = {
        system.name: _likeness(system.embedder, part)
        for system in systems
        if isinstance(system, EmbedderSystem | TwoStageSystem)
    }
    likenesses = list(likeness_of.values())
    rankings = [
        _nearest_wrong_skills(likeness_of[system.name], part, last)
        if isinstance(system, EmbedderSystem)
        else _wrong_skills(_ranked(system, data, part, last), part, last)
        for system in systems
    ]
    guards = list(_guards(part, likenesses, settings))
    counts: Counter[str] = Counter()
    rows = _Rows([system.name for system in systems])
    position = {skill.id: place for place, skill in enumerate(part.skills)}
    with progress("guard", len(part.queries)) as bar:
        for request, query in enumerate(part.queries):
            candidates = merge([ranking_QR[request] for ranking_QR in rankings], first)
            golds = sorted(position[gold] for gold in part.golds[query.id])
            kinds = _kinds(request, golds, candidates, guards, above=first if settings.guard_top else 0)
            kept = [place for place, kind in enumerate(kinds) if kind == NEGATIVE]
            # Each request has a draw of its own: the same whatever else is mined.
            draw = random.Random(f"{settings.seed} {query.id}")  # noqa: S311 -- reproducible, not secret
            drawn = set(draw.sample(kept, min(settings.num_negatives, len(kept))))
            skills = [candidate.skill for candidate in candidates]
            near = likenesses[0].to_request(request, skills).tolist() if likenesses else [None] * len(skills)
            for place, kind in enumerate(kinds):
                if kind != NEGATIVE or place in drawn:
                    candidate = candidates[place]
                    rows.add(query.id, part.skills[candidate.skill].id, kind, place + 1, near[place], candidate.ranks)
            counts.update(kinds)
            counts.update(drawn=len(drawn), short=len(drawn) < settings.num_negatives)
            bar.advance()
    return rows.table(), _provenance(part, systems, guards, settings, counts)


def merge(rankings: Sequence[NDArray[np.int32]], first: int) -> list[Candidate]:
    """What any system ranks from `first` to its end, in the order of reciprocal rank fusion, ties as positions are.

    A ranking holds positions of skills from rank 1 on; -1 behind its last one.
    """
    ranks: dict[int, list[int | None]] = {}
    for place, ranking in enumerate(rankings):
        for rank, skill in enumerate(ranking.tolist(), 1):
            if skill >= 0:
                ranks.setdefault(skill, [None] * len(rankings))[place] = rank
    found = [
        Candidate(skill, tuple(each))
        for skill, each in ranks.items()
        if any(rank is not None and rank >= first for rank in each)
    ]
    fused = {each.skill: math.fsum(1 / (_RRF + rank) for rank in each.ranks if rank) for each in found}
    return sorted(found, key=lambda each: (-fused[each.skill], each.skill))


def _ranked(system: System, data: TrainingData, part: TrainingData, last: int) -> Run:
    """The system's rankings of all skills of the data for the part's requests, each deep enough for the window."""
    most_golds = max(len(golds) for golds in part.golds.values())
    depth = math.ceil(_SPARE * (last + most_golds) * len(data.skills) / len(part.skills))
    run = system.rank(part.queries, data.skills, depth=min(depth, len(data.skills)))
    if missing := [query.id for query in part.queries if query.id not in run]:
        raise CatalogueError(
            f"system `{system.name}`",
            got=f"no ranking for {len(missing)} of {len(part.queries)} requests, such as `{missing[0]}`",
            wanted="all requests that are trained on",
            fix="Rank them, or leave this system out.",
        )
    return run


def _wrong_skills(run: Run, part: TrainingData, last: int) -> NDArray[np.int32]:
    """Positions of the wrong skills of each request by rank, `[Q, last]`; -1 where the ranking has ended."""
    position = {skill.id: place for place, skill in enumerate(part.skills)}
    wrong_QR = np.full((len(part.queries), last), -1, np.int32)
    for row, query in enumerate(part.queries):
        golds = part.golds[query.id]
        skills = [position[skill] for skill in ranked(run[query.id]) if skill in position and skill not in golds]
        wrong_QR[row, : len(skills)] = skills[:last]
    return wrong_QR


def _nearest_wrong_skills(likeness: Likeness, part: TrainingData, last: int) -> NDArray[np.int32]:
    """The same from embeddings, exactly; equally near skills as positions are."""
    position = {skill.id: place for place, skill in enumerate(part.skills)}
    wrong_QR = np.full((len(part.queries), last), -1, np.int32)
    for start in range(0, len(part.queries), _ROWS):
        near_RS = likeness.requests[start : start + _ROWS] @ likeness.skills.T
        for row, near_S in enumerate(near_RS, start):
            golds = [position[skill] for skill in part.golds[part.queries[row].id]]
            near_S[golds] = -np.inf
            skills = np.argsort(-near_S, kind="stable")[: min(last, len(near_S) - len(golds))]
            wrong_QR[row, : len(skills)] = skills
    return wrong_QR


def _likeness(embedder: Embedder, part: TrainingData) -> Likeness:
    requests = [cut.ids for cut in embedder.tokens.queries([query.text for query in part.queries])]
    skills = embedder.tokens.skills(part.skills)
    with progress("embed", len(requests) + len(skills)) as bar:
        rows = [embed_all(embedder.model, each, embedder.card, embedder.precision, bar) for each in (requests, skills)]
    return Likeness(rows[0].numpy(), rows[1].numpy())


def _guards(part: TrainingData, likenesses: Sequence[Likeness], settings: MineSettings) -> Iterator[Guard]:
    if settings.guard_names:
        yield NameGuard(part.skills)
    yield OverlapGuard(part.skills, settings.max_overlap)
    for likeness in likenesses:
        yield ShareGuard(likeness, settings.max_share)
        yield NearGoldGuard(likeness, settings.max_gold_similarity)


def _kinds(
    request: int, golds: Sequence[int], candidates: Sequence[Candidate], guards: Sequence[Guard], *, above: int
) -> list[str]:
    """For each candidate `negative`, or the first guard that suspects it."""
    kinds = {each.skill: _TOP if any(rank and rank < above for rank in each.ranks) else NEGATIVE for each in candidates}
    for guard in guards:
        left = [skill for skill, kind in kinds.items() if kind == NEGATIVE]
        kinds |= dict.fromkeys(guard.suspects(request, golds, left), guard.name)
    return [kinds[each.skill] for each in candidates]


class _Rows:
    """The rows of a file of mined negatives, column by column."""

    def __init__(self, systems: Sequence[str]) -> None:
        self._schema = pa.schema(
            [
                ("query_id", pa.string()),
                ("skill_id", pa.string()),
                ("kind", pa.string()),
                ("merged_rank", pa.int32()),
                ("similarity", pa.float32()),
                *((f"rank {system}", pa.int32()) for system in systems),
            ]
        )
        self._columns: list[list[Any]] = [[] for _ in self._schema]

    def add(
        self, query: str, skill: str, kind: str, merged: int, near: float | None, ranks: Sequence[int | None]
    ) -> None:
        for column, value in zip(self._columns, (query, skill, kind, merged, near, *ranks), strict=True):
            column.append(value)

    def table(self) -> pa.Table:
        return pa.table(dict(zip(self._schema.names, self._columns, strict=True)), schema=self._schema)


def _provenance(
    part: TrainingData,
    systems: Sequence[System],
    guards: Sequence[Guard],
    settings: MineSettings,
    counts: Mapping[str, int],
) -> dict[str, Any]:
    suspected = {name: counts.get(name, 0) for name in dict.fromkeys((_TOP, *(guard.name for guard in guards)))}
    return {
        "data": part.digest,
        "origin": part.origin,
        "part": part.part_digest,
        "cut": part.cut,
        "systems": [{"spec": system.name, "digests": dict(system.digests)} for system in systems],
        "settings": settings.model_dump(),
        "counts": {
            "requests": len(part.queries),
            "skills": len(part.skills),
            "candidates": counts[NEGATIVE] + sum(suspected.values()),
            "left_out": suspected,
            "drawn": counts["drawn"],
            "short": counts["short"],
        },
        "versions": {package: version(package) for package in _PACKAGES},
    }
