"""Candidates for hard negatives: what systems rank in a window of ranks, without golds and what is held out.

Ranks count wrong skills only, so no gold and no held-out skill takes a place in the window. Legend: Q requests,
S skills of the part, R ranks from 1 to the window's end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skillserve.errors import CatalogueError
from skillserve.metrics import ranked
from skillserve.records import Run
from skillserve.systems import System
from skillserve_training.dataset import TrainingData
from skillserve_training.nearness import Nearness

__all__ = ["Candidate", "merge", "nearest_wrong_skills", "ranked_by", "wrong_skills"]

_RRF = 60
"""Reciprocal rank fusion's constant (Cormack, Clarke, Büttcher, 2009)."""
_ROWS = 1024
"""Requests compared with all skills at once: bounds the memory of the similarities."""
_SPARE = 1.5
"""Systems rank so many times deeper than the window's end, since what is held out leaves the rankings."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A wrong skill in the window of at least one system."""

    skill: int
    """Position among the part's skills."""
    ranks: tuple[int | None, ...]
    """Per system, counted from 1; None where it ranks the skill below the window."""


def ranked_by(system: System, data: TrainingData, part: TrainingData, last: int) -> Run:
    """The system's rankings of all skills of the data for the part's requests, each deep enough for the window.

    CatalogueError if it leaves out a request.
    """
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


def wrong_skills(run: Run, part: TrainingData, last: int) -> NDArray[np.int32]:
    """Positions of the wrong skills of each request by rank, `[Q, last]`; -1 where the ranking has ended."""
    position = {skill.id: place for place, skill in enumerate(part.skills)}
    wrong_QR = np.full((len(part.queries), last), -1, np.int32)
    for row, query in enumerate(part.queries):
        golds = part.golds[query.id]
        skills = [position[skill] for skill in ranked(run[query.id]) if skill in position and skill not in golds]
        wrong_QR[row, : len(skills)] = skills[:last]
    return wrong_QR


def nearest_wrong_skills(nearness: Nearness, part: TrainingData, last: int) -> NDArray[np.int32]:
    """The same by nearness, exactly; equally near skills as positions are."""
    position = {skill.id: place for place, skill in enumerate(part.skills)}
    wrong_QR = np.full((len(part.queries), last), -1, np.int32)
    for start in range(0, len(part.queries), _ROWS):
        near_RS = nearness.block(start, start + _ROWS)
        for row, near_S in enumerate(near_RS, start):
            golds = [position[skill] for skill in part.golds[part.queries[row].id]]
            near_S[golds] = -np.inf
            skills = np.argsort(-near_S, kind="stable")[: min(last, len(near_S) - len(golds))]
            wrong_QR[row, : len(skills)] = skills
    return wrong_QR


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
