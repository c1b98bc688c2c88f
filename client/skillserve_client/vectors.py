"""What the client asks of a vector index, whoever keeps it: FAISS in this process, or Milvus on other machines.

Shape legend: Q queries, N skills, K results, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from skillserve_client.wire import Floats

__all__ = ["Entries", "Identity", "Mark", "Rows", "VectorIndex", "differences"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What makes vectors comparable."""

    embedder: str
    """Digest of the model."""
    tokenizer: str
    """SHA-256 of the tokenizer that was served with it."""
    dim: int


class Mark(NamedTuple):
    """What tells whether a skill's entry is the wanted one, without its vector."""

    row: int
    """Place of the skill in its catalogue; equal similarities are ordered by it."""
    namespace: str
    digest: str
    """SHA-256 of the skill's content."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Skills with their vectors, as an index keeps them."""

    marks: Mapping[str, Mark]
    """By skill id; no two have one row."""
    vectors: Floats
    """`[n, D]` finite, in the order of the marks."""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.marks) or not np.isfinite(self.vectors).all():
            raise ValueError(f"{len(self.marks)} entries need as many finite vectors [n, D], not {self.vectors.shape}")
        if len({mark.row for mark in self.marks.values()}) != len(self.marks):
            raise ValueError("two entries have one row")


class VectorIndex(Protocol):
    """Embeddings of skills under their ids, searched by inner product, exactly.

    The order depends on nothing but the vectors: similarities are summed in float64, rounded to float32, and equal
    ones are ordered by row. That of one index is that of any other that holds the same.
    """

    @property
    def dim(self) -> int:
        """D."""

    def __len__(self) -> int:
        """N."""

    def search(self, queries: Floats, k: int, *, namespace: str | None = None) -> tuple[Floats, Rows]:
        """The K nearest skills of each query: similarities `[Q, K]`, rows `[Q, K]`, best first.

        K = min(k, skills of the namespace), of all skills without one.
        """

    def similarities(self, queries: Floats) -> Floats:
        """Of queries `[Q, D]` with all skills in the order of their rows, `[Q, N]`: those that `search` orders by."""

    def marks(self) -> dict[str, Mark]:
        """What it holds, by skill id."""

    def vectors(self, ids: Sequence[str]) -> Floats:
        """`[n, D]`, of skills that it holds; raises KeyError for another one."""

    def upsert(self, entries: Entries) -> None:
        """Add skills, and replace those whose ids it holds already; raises ValueError for vectors of another D."""

    def delete(self, ids: Iterable[str]) -> None:
        """Remove skills; ids that it does not hold are passed over."""


def differences(held: Mapping[str, Mark], wanted: Mapping[str, Mark]) -> tuple[list[str], list[str]]:
    """Ids to delete from an index, and ids to upsert, so that it holds what is wanted and no more."""
    return [skill for skill in held if skill not in wanted], [
        skill for skill, mark in wanted.items() if held.get(skill) != mark
    ]
