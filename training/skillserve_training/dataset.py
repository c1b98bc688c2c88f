"""Training data, and the parts that it is cut into: one to train on, one to choose on."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from skillserve.errors import CatalogueError, ConfigError
from skillserve.records import Qrels, Query, Skill

__all__ = ["TrainingData", "folds", "hold_out"]

_CUT_SEED = 0


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Skills, requests, and which skills fit which request."""

    skills: tuple[Skill, ...]
    queries: tuple[Query, ...]
    """Each with at least one gold."""
    golds: Mapping[str, frozenset[str]]
    """Query id → ids of the skills that fit it."""
    digest: str
    """SHA-256 over the content of the files that were read; the same for every part that is cut from them."""
    origin: str = ""
    """`hub:org/name@commit`, or empty for a local folder."""
    cut: str = ""
    """How this part was cut, such as `hold-out of 0.1`; empty for all of the data."""

    @property
    def qrels(self) -> Qrels:
        """The golds as relevance judgements."""
        return {query.id: dict.fromkeys(self.golds[query.id], 1) for query in self.queries}

    @property
    def part_digest(self) -> str:
        """SHA-256 over the data's digest and the ids that this part holds: equal for equal parts of equal data."""
        ids = [self.digest, *sorted(f"skill {skill.id}" for skill in self.skills)]
        ids += sorted(f"request {query.id}" for query in self.queries)
        return hashlib.sha256("\n".join(ids).encode("utf-8", "surrogatepass")).hexdigest()


def hold_out(data: TrainingData, *, share: float) -> tuple[TrainingData, TrainingData]:
    """Cut off about `share` of the skills with their requests: (to train on, to choose on). May raise CatalogueError.

    No gold of a held-out request is in the training part, neither as a skill nor as a gold. Chains of requests
    that share golds are held out whole as long as the share allows; a request with golds on both sides belongs
    to neither part. The held-out part keeps ALL skills as its corpus: serving mixes known and new skills too.
    The cut depends on data and share alone, not on a run's seed, and a smaller share is a part of a larger one:
    so a reranker can be chosen on skills that its embedder has not seen either.
    """
    if not share:
        return data, replace(data, queries=(), golds={})
    groups = list(_walk(data))
    quota = share * sum(map(len, groups))
    held: set[str] = set()
    for group in groups:
        if len(held) >= quota:
            break
        held.update(group)
    return _cut(data, held, f"hold-out of {share:g}", "Bring more data, or train on all of it: --holdout-share 0")


def folds(data: TrainingData, num: int) -> tuple[tuple[TrainingData, TrainingData], ...]:
    """Cross-validation: `num` cuts (to train on, to choose on), each like that of `hold_out`.

    Every skill that fits a request is held out in exactly one fold, and no request is to choose on in two. A request
    is in none if its golds lie in several; chains of requests stay together, so at most `num - 1` of them are torn.
    The first fold is the hold-out of a share of 1 / num. Cut what `hold_out` left to train on, and no fold sees the
    hold-out. ConfigError if `num` is below 2, CatalogueError if a fold would have no request.
    """
    if num < 2:
        raise ConfigError("folds", got=str(num), wanted="2 or more", fix="Ask for at least two folds.")
    groups = list(_walk(data))
    total = sum(map(len, groups))
    held: list[set[str]] = [set() for _ in range(num)]
    place = taken = 0
    for group in groups:
        while taken >= (place + 1) / num * total:
            place += 1
        held[place].update(group)
        taken += len(group)
    fewer = f"Cut fewer than {num} folds, or bring more data."
    cuts = tuple(_cut(data, each, f"fold {place} of {num}", fewer) for place, each in enumerate(held, 1))
    if not all(to_choose.queries for _, to_choose in cuts):
        raise CatalogueError(
            "folds",
            got=f"{num}, at least one of them without a request of its own",
            wanted="requests in every fold",
            fix=fewer,
        )
    return cuts


def _walk(data: TrainingData) -> Iterator[list[str]]:
    """Every skill that fits a request once, in groups: those that one more request adds.

    From a random request on, requests that share a skill with what was reached come next; so whatever is cut off
    between two groups tears one chain of requests at most.
    """
    queries_of: defaultdict[str, list[str]] = defaultdict(list)
    for query in data.queries:
        for skill in sorted(data.golds[query.id]):
            queries_of[skill].append(query.id)
    order = [query.id for query in data.queries]
    random.Random(_CUT_SEED).shuffle(order)  # noqa: S311 -- reproducible, not secret
    reached: set[str] = set()
    for first in order:
        chain = [first]
        while chain:
            group = sorted(data.golds[chain.pop()] - reached)
            reached.update(group)
            for skill in group:
                chain.extend(queries_of[skill])
            if group:
                yield group


def _cut(data: TrainingData, held: set[str], name: str, fix: str) -> tuple[TrainingData, TrainingData]:
    name = f"{data.cut}, {name}" if data.cut else name

    def part(skills: tuple[Skill, ...], queries: tuple[Query, ...]) -> TrainingData:
        golds = {query.id: data.golds[query.id] for query in queries}
        return replace(data, skills=skills, queries=queries, golds=golds, cut=name)

    to_train = part(
        tuple(skill for skill in data.skills if skill.id not in held),
        tuple(query for query in data.queries if data.golds[query.id].isdisjoint(held)),
    )
    if not to_train.queries or len(to_train.skills) < 2:
        raise CatalogueError(
            name,
            got=f"{len(held)} skills set aside, which leaves too little to train on",
            wanted="requests and at least two skills to train on",
            fix=fix,
        )
    return to_train, part(data.skills, tuple(query for query in data.queries if data.golds[query.id] <= held))
