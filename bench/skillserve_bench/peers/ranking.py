"""How well a contender ranks: the same judged requests for everybody, through the very target that is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from skillserve.console import talk
from skillserve.metrics import ndcg_at_k
from skillserve_bench.load.generator import Generator
from skillserve_bench.load.schedule import ClosedLoop
from skillserve_bench.measurement import Contender
from skillserve_client.quality import Judged

__all__ = ["DEPTH", "Ranking", "rank"]

DEPTH = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """NDCG@10 over judged requests; one without an answer counts 0."""

    values: tuple[float, ...]
    """Of each request, in the order in which they were asked; the same for the same seed."""
    num_answered: int

    @property
    def ndcg(self) -> float:
        """The mean."""
        return fmean(self.values)

    @property
    def num_requests(self) -> int:
        """Requests that were asked."""
        return len(self.values)

    def to_dict(self) -> dict[str, float]:
        """As a report has it."""
        return {"ndcg": self.ndcg, "num_requests": self.num_requests, "num_answered": self.num_answered}


def rank(
    generator: Generator,
    contender: Contender,
    payload: Callable[[str], bytes],
    judged: Judged,
    *,
    most: int,
    window_s: float,
    seed: int,
) -> Ranking:
    """Ask for at most so many judged requests, drawn from the seed, one after another."""
    drawn = np.random.default_rng(seed).permutation(len(judged.queries))[:most].tolist()
    queries = [judged.queries[i] for i in drawn]
    talk(f"{contender.name}, quality: {len(queries)} judged requests")
    load = ClosedLoop(num_clients=1, seconds=None)
    payloads = [payload(query.text) for query in queries]
    run = generator.drive(contender.target, payloads, load, window_s=window_s, keep_answers=True)
    answers = run.answers or [b""] * len(queries)
    values = tuple(
        ndcg_at_k(answer.decode().splitlines(), judged.qrels[query.id], DEPTH)
        for query, answer in zip(queries, answers, strict=True)
    )
    return Ranking(values=values, num_answered=run.num_answered)
