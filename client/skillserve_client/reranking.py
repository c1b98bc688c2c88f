"""What the second stage asks of the server, and what becomes of its answer.

Most rerankers are asked about pairs, and their answers are logits. Where a bundle keeps the token embeddings of its
skills, the server reads the request alone, and logits are made here (`skillserve.max_sim`): the skills' tokens, which
are nearly all of the work, were read when the bundle was built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from skillserve.tensors import Ids, Role
from skillserve_client.corpus import Corpus
from skillserve_client.embedding import Bars
from skillserve_client.wire import Floats, Inference

__all__ = ["Reranking", "rerank", "rerank_all"]

_REQUESTS_AT_ONCE = 32
"""Requests whose pairs are in memory together."""


@dataclass(frozen=True, slots=True)
class Reranking:
    """One request beside some candidates."""

    corpus: Corpus
    candidates: Sequence[int]
    """Their rows, n of them."""
    sequences: Sequence[Ids]
    """What is inferred."""

    @property
    def num_rows(self) -> int:
        """Rows of the answer."""
        if self.corpus.tokens is None:
            return len(self.sequences)
        return sum(map(len, self.sequences))

    def logits(self, answer: Floats) -> Floats:
        """`[n]`, from the rows of all sequences."""
        if self.corpus.tokens is None:
            return answer
        return self.corpus.tokens.scores(answer, self.candidates)


def rerank(corpus: Corpus, query: Ids, candidates: Sequence[int]) -> Reranking:
    """How a request, its bare ids, is compared with the skills at these rows."""
    if corpus.tokens is None:
        return Reranking(corpus, candidates, corpus.pairs(query, candidates))
    return Reranking(corpus, candidates, [corpus.require_reranker().request_alone(query)])


def rerank_all(
    corpus: Corpus,
    queries: Sequence[Ids],
    candidates: Sequence[Sequence[int]],
    triton: Inference,
    progress: Bars,
    *,
    digest: str | None = None,
) -> Iterator[Floats]:
    """The logits of many requests, each beside its own candidates; raises ServerError, and BundleError as `infer`."""
    role: Role = corpus.second_stage
    with progress("reranking candidates", sum(map(len, candidates))) as bar:
        for start in range(0, len(queries), _REQUESTS_AT_ONCE):
            part = slice(start, start + _REQUESTS_AT_ONCE)
            asked = [rerank(corpus, *each) for each in zip(queries[part], candidates[part], strict=True)]
            sequences = [ids for each in asked for ids in each.sequences]
            tell = bar.advance if corpus.tokens is None else None  # which counts sequences, and those are pairs
            answer = triton.infer(role, sequences, progress=tell, digest=digest)
            ends = np.cumsum([each.num_rows for each in asked])[:-1]
            for each, rows in zip(asked, np.split(answer, ends), strict=True):
                yield each.logits(rows)
                if tell is None:
                    bar.advance(len(each.candidates))
