"""What a reranker is trained on: for each request and gold a list of skills, of which the first one is right."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skillserve.framing import RerankerTokens
from skillserve.settings import TrainSettings
from skillserve.tensors import Ids
from skillserve_training.dataset import TrainingData

__all__ = ["Listing", "RerankerTexts", "schedule_of_lists", "tokenise_sides"]


@dataclass(frozen=True, slots=True)
class Listing:
    """One row of a step: a request, a skill that fits it, and skills that do not."""

    request: int
    skills: tuple[int, ...]
    """Positions; the right one first."""


@dataclass(frozen=True, slots=True)
class RerankerTexts:
    """Both sides of all pairs, without frame."""

    tokens: RerankerTokens
    requests: list[Ids]
    skills: list[Ids]
    golds: list[frozenset[int]]
    """Per request, the positions of its skills."""

    def pairs(self, listing: Listing) -> list[Ids]:
        """The framed pairs of a list."""
        return [self.tokens.pair(self.requests[listing.request], self.skills[skill]) for skill in listing.skills]


def tokenise_sides(data: TrainingData, tokens: RerankerTokens) -> RerankerTexts:
    """Requests and skills as the card of `tokens` has them read."""
    position = {skill.id: i for i, skill in enumerate(data.skills)}
    return RerankerTexts(
        tokens=tokens,
        requests=[cut.ids for cut in tokens.queries([query.text for query in data.queries])],
        skills=tokens.skills(data.skills),
        golds=[frozenset(position[skill] for skill in data.golds[query.id]) for query in data.queries],
    )


def schedule_of_lists(
    texts: RerankerTexts, ranked: Sequence[Sequence[int]], settings: TrainSettings
) -> tuple[list[Listing], int]:
    """All rows of a run in order, and the number of steps; `ranked[request]` are wrong skills, hardest first.

    A request's negatives are drawn once and shared by its golds, as SkillRet does; with `redraw_negatives` every
    pass draws its own. A share of them comes from the whole catalogue. The whole order is drawn beforehand, so a run
    that was stopped goes on with the very rows that were left.
    """
    draw = random.Random(settings.seed)  # noqa: S311 -- reproducible, not secret
    pairs = [(request, gold) for request, golds in enumerate(texts.golds) for gold in sorted(golds)]
    size = min(settings.batch_size, len(pairs))
    steps = max(1, round(settings.epochs * (len(pairs) // size)))
    rows: list[Listing] = []
    drawn: Mapping[int, tuple[int, ...]] = {}
    while len(rows) < steps * size:
        if settings.redraw_negatives or not drawn:
            drawn = {request: _negatives(texts, request, ranked[request], settings, draw) for request, _ in pairs}
        draw.shuffle(pairs)
        rows += [Listing(request, (gold, *drawn[request])) for request, gold in pairs[: len(pairs) // size * size]]
    return rows[: steps * size], steps


def _negatives(
    texts: RerankerTexts, request: int, ranked: Sequence[int], settings: TrainSettings, draw: random.Random
) -> tuple[int, ...]:
    """Up to `num_negatives` wrong skills; fewer where the catalogue has no more."""
    num_hard = round(settings.num_negatives * (1 - settings.random_share))
    hard = draw.sample(ranked, min(num_hard, len(ranked)))
    taken = texts.golds[request].union(hard)
    wanted = min(settings.num_negatives - len(hard), len(texts.skills) - len(taken))
    others: list[int] = []
    while len(others) < wanted:
        skill = draw.randrange(len(texts.skills))
        if skill not in taken:
            taken |= {skill}
            others.append(skill)
    return (*hard, *others)
