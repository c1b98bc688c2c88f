"""Mining hard negatives: wrong skills that several systems rank high, without those that probably fit after all.

As SkillRet trains its reranker: from each system the wrong skills at ranks 21 to 60, merged, and from them 15 drawn
once for each request. Run files and servers know no other pool than all skills of the train split, and BM25 ranks them
too; what is held out leaves their rankings before ranks are counted. Embedders read the part that is trained on, once,
for their ranking and for the guards.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from skillserve.console import progress
from skillserve.records import Query
from skillserve.settings import MineSettings, window
from skillserve.systems import System
from skillserve_training.candidates import Candidate, merge, nearest_wrong_skills, ranked_by, wrong_skills
from skillserve_training.dataset import TrainingData
from skillserve_training.evaluate import Embedder
from skillserve_training.forward import embed_all
from skillserve_training.guards import Guard, NameGuard, NearGoldGuard, OverlapGuard, ShareGuard
from skillserve_training.mined import NEGATIVE
from skillserve_training.nearness import Likeness
from skillserve_training.systems import EmbedderSystem, TwoStageSystem

__all__ = ["mine"]

_TOP = "top"
"""Kind of a candidate that another system ranks above the window."""
_PACKAGES = ("skillserve", "numpy", "torch", "transformers", "tokenizers", "bm25s", "pyarrow")


def mine(
    data: TrainingData, part: TrainingData, systems: Sequence[System], settings: MineSettings
) -> tuple[pa.Table, dict[str, Any]]:
    """Negatives for the requests of `part`, which is `data` or what a hold-out left of it to train on.

    Returns the rows of a file of mined negatives, and where they come from. CatalogueError if a system leaves out a
    request.
    """
    first, last = window(settings.ranks)
    likeness_of = {
        system.name: _likeness(system.embedder, part)
        for system in systems
        if isinstance(system, EmbedderSystem | TwoStageSystem)
    }
    likenesses = list(likeness_of.values())
    rankings = [
        nearest_wrong_skills(likeness_of[system.name], part, last)
        if isinstance(system, EmbedderSystem)
        else wrong_skills(ranked_by(system, data, part, last), part, last)
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
            drawn = _draw(query, kinds, settings)
            skills = [candidate.skill for candidate in candidates]
            near = likenesses[0].to_request(request, skills).tolist() if likenesses else [None] * len(skills)
            for place, kind in enumerate(kinds):
                if kind != NEGATIVE or place in drawn:
                    candidate = candidates[place]
                    rows.add(query.id, part.skills[candidate.skill].id, kind, place + 1, near[place], candidate.ranks)
            counts.update(kinds)
            counts.update(drawn=len(drawn), short=len(drawn) < settings.num_negatives)
            bar.advance()
    counts.update(held_out=len(data.skills) - len(part.skills), golds=sum(map(len, part.golds.values())))
    return rows.table(), _provenance(part, systems, guards, settings, counts)


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


def _draw(query: Query, kinds: Sequence[str], settings: MineSettings) -> set[int]:
    """Places of the negatives that are drawn; each request has a draw of its own, the same whatever else is mined."""
    draw = random.Random(f"{settings.seed} {query.id}")  # noqa: S311 -- reproducible, not secret
    kept = [place for place, kind in enumerate(kinds) if kind == NEGATIVE]
    return set(draw.sample(kept, min(settings.num_negatives, len(kept))))


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
            "held_out_skills": counts["held_out"],
            "golds": counts["golds"],
            "candidates": counts[NEGATIVE] + sum(suspected.values()),
            "left_out": suspected,
            "drawn": counts["drawn"],
            "short": counts["short"],
        },
        "versions": {package: version(package) for package in _PACKAGES},
    }
