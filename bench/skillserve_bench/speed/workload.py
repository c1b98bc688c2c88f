"""What is computed: skills and requests in one shuffled stream, and candidates of each request to be reranked.

A workload is cut into parts, one a round. Every contender takes the same part in a round, so ratios are formed on
the same texts, and after all rounds each text has been read once by everybody: rankings come out of it, too.

Shape legend: S sequences of the whole workload, D embedding dimension, C candidates of a request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from skillserve.errors import CatalogueError
from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.fusion import fuse
from skillserve.metrics import evaluate
from skillserve.records import Qrels, Query, Skill
from skillserve.skillfile import read_skills, split_file
from skillserve.tensors import Ids, Role
from skillserve_client.quality import read_judged
from skillserve_client.wire import Floats

__all__ = ["NUM_CANDIDATES", "Corpus", "Embedding", "Part", "Reranking", "Texts", "Workload", "read_corpus"]

NUM_CANDIDATES = 20
"""Skills of a request that are reranked, the default of a search."""

_K = 10

Places = npt.NDArray[np.int64]
"""Places in a workload, `[n]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Some of a workload as other implementations read it: either skills and requests, or pairs."""

    skills: Sequence[Skill] = ()
    requests: Sequence[str] = ()
    stream: Places
    """Where each sequence stands in the skills with the requests behind them, or in the pairs."""
    pairs: Sequence[tuple[str, Skill]] = ()


class Workload(Protocol):
    """Either of the two below."""

    role: Role

    @property
    def size(self) -> int:
        """S."""
        ...

    def parts(self, num: int) -> list[Part]:
        """The whole of it in so many parts."""
        ...

    def part(self, places: Places) -> Part:
        """Some of it."""
        ...

    def tokenised(self, places: Places) -> list[Ids]:
        """Sequences of texts, as our own contenders read them."""
        ...

    def texts(self, places: Places) -> Texts:
        """The same as others read it."""
        ...

    def ndcg(self, rows: Floats) -> float:
        """NDCG@10 of the rankings that rows of the whole workload give, in points."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """Some sequences of a workload, in the order in which they are computed."""

    workload: Workload
    places: Places
    num_together: int
    """Sequences of one request to a server."""

    def tokenised(self) -> list[Ids]:
        """Its sequences."""
        return self.workload.tokenised(self.places)

    def texts(self) -> Texts:
        """Its texts."""
        return self.workload.texts(self.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Judged requests and the skills that they are judged on."""

    skills: tuple[Skill, ...]
    queries: tuple[Query, ...]
    qrels: Qrels


def read_corpus(data: Path, *, num_skills: int | None, num_requests: int | None, seed: int) -> Corpus:
    """The test split, or some of it: drawn requests, the skills that fit them, and drawn others. Raises CatalogueError.

    Fitting skills are never left out, so that a trial has rankings, too.
    """
    skills = read_skills(split_file(data, "skills", "test"))
    judged = read_judged(split_file(data, "queries", "test"), split_file(data, "qrels", "test"))
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(judged.queries))[:num_requests]
    queries = [judged.queries[i] for i in chosen.tolist()]
    golds = {skill for query in queries for skill, rel in judged.qrels[query.id].items() if rel > 0}
    order = [skills[i] for i in rng.permutation(len(skills)).tolist()]
    order.sort(key=lambda skill: skill.id not in golds)
    kept = order[: None if num_skills is None else max(num_skills, len(golds))]
    if not golds & {skill.id for skill in kept}:
        raise CatalogueError(
            f"test split of `{data}`",
            got=f"{len(golds)} judged skills, none of which is in the catalogue",
            wanted="judgements about this catalogue",
            fix="Name a folder in SkillRet's layout, such as examples/sample.",
        )
    return Corpus(
        skills=tuple(kept), queries=tuple(queries), qrels={query.id: dict(judged.qrels[query.id]) for query in queries}
    )


class Embedding:
    """All skills and requests, shuffled. Places below the number of skills are skills', the others requests'."""

    role: Role = "embedder"

    def __init__(self, corpus: Corpus, tokens: EmbedderTokens, *, seed: int) -> None:
        self._corpus = corpus
        self._tokens = tokens
        self._order: Places = np.random.default_rng(seed).permutation(self.size)

    @property
    def size(self) -> int:
        """Skills and requests."""
        return len(self._corpus.skills) + len(self._corpus.queries)

    def parts(self, num: int) -> list[Part]:
        """The shuffled stream in pieces of about the same number."""
        return [self.part(places) for places in np.array_split(self._order, num)]

    def part(self, places: Places) -> Part:
        """A sequence is a request of its own."""
        return Part(self, places, 1)

    def tokenised(self, places: Places) -> list[Ids]:
        """Framed ids."""
        found = self.texts(places)
        ids = [*self._tokens.skills(found.skills), *(cut.ids for cut in self._tokens.queries(found.requests))]
        return [ids[i] for i in found.stream.tolist()]

    def texts(self, places: Places) -> Texts:
        """Skills and requests."""
        num = len(self._corpus.skills)
        return Texts(
            skills=[self._corpus.skills[i] for i in places[places < num].tolist()],
            requests=[self._corpus.queries[i - num].text for i in places[places >= num].tolist()],
            stream=np.argsort(np.argsort(places >= num, kind="stable"), kind="stable"),
        )

    def similarities(self, rows: Floats) -> Floats:
        """`[Q, N]` inner products of requests with skills."""
        num = len(self._corpus.skills)
        products: Floats = rows[num:] @ rows[:num].T
        return products

    def ndcg(self, rows: Floats) -> float:
        """By inner product, over all skills."""
        ids = [skill.id for skill in self._corpus.skills]
        run = {
            query.id: dict(zip(ids, scores, strict=True))
            for query, scores in zip(self._corpus.queries, self.similarities(rows).tolist(), strict=True)
        }
        return evaluate(run, self._corpus.qrels, k=_K)[f"ndcg@{_K}"] * 100


class Reranking:
    """The best candidates of every request, request after request, in a shuffled order of requests."""

    role: Role = "reranker"

    def __init__(self, corpus: Corpus, tokens: RerankerTokens, similarities: Floats, *, seed: int) -> None:
        self._corpus = corpus
        self._tokens = tokens
        self.num_candidates = min(NUM_CANDIDATES, len(corpus.skills))
        self._candidates = np.argsort(-similarities, axis=1, kind="stable")[:, : self.num_candidates]
        self._similarities = np.take_along_axis(similarities, self._candidates, axis=1)
        self._order = np.random.default_rng(seed).permutation(len(corpus.queries))
        # Skill sides are tokenised once, when a catalogue is indexed, and not in a search.
        needed = sorted({row for rows in self._candidates.tolist() for row in rows})
        sides = tokens.skills([corpus.skills[row] for row in needed])
        self._sides = dict(zip(needed, sides, strict=True))

    @property
    def size(self) -> int:
        """Pairs."""
        return int(self._candidates.size)

    def parts(self, num: int) -> list[Part]:
        """Whole requests, about the same number in each part."""
        within = np.arange(self.num_candidates)
        return [
            self.part((requests[:, None] * self.num_candidates + within).reshape(-1))
            for requests in np.array_split(self._order, num)
        ]

    def part(self, places: Places) -> Part:
        """The candidates of a request are one request to a server."""
        return Part(self, places, self.num_candidates)

    def tokenised(self, places: Places) -> list[Ids]:
        """Framed pairs; each request is tokenised once."""
        requests = list(dict.fromkeys((places // self.num_candidates).tolist()))
        cuts = self._tokens.queries([self._corpus.queries[i].text for i in requests])
        ids = {request: cut.ids for request, cut in zip(requests, cuts, strict=True)}
        return [self._tokens.pair(ids[request], self._sides[row]) for request, row in self._pairs(places)]

    def texts(self, places: Places) -> Texts:
        """Pairs."""
        pairs = [(self._corpus.queries[i].text, self._corpus.skills[row]) for i, row in self._pairs(places)]
        return Texts(pairs=pairs, stream=np.arange(len(pairs)))

    def ndcg(self, rows: Floats) -> float:
        """By the final score, as the reranker's card says; candidates only."""
        scores = fuse(rows.reshape(self._candidates.shape), self._similarities, self._tokens.card.similarity_weight)
        run = {
            query.id: {self._corpus.skills[row].id: score for row, score in zip(rows_C, scores_C, strict=True)}
            for query, rows_C, scores_C in zip(
                self._corpus.queries, self._candidates.tolist(), scores.tolist(), strict=True
            )
        }
        return evaluate(run, self._corpus.qrels, k=_K)[f"ndcg@{_K}"] * 100

    def _pairs(self, places: Places) -> list[tuple[int, int]]:
        """Request and row of the skill, for each place."""
        requests, candidates = np.divmod(places, self.num_candidates)
        rows = self._candidates[requests, candidates]
        return list(zip(requests.tolist(), rows.tolist(), strict=True))
