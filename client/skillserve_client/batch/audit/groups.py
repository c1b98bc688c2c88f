"""Groups of near duplicates: connected components of close pairs and of equal texts.

Shape legend: N skills, P pairs, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skillserve_client.vectors import Rows
from skillserve_client.wire import Floats

__all__ = ["Forest", "Group", "first_of_text"]

_PAIRS_AT_ONCE = 1 << 16
_TIE = 1e-6
"""Means of similarities that differ by no more are equal: float32 unit vectors are as inexact."""


@dataclass(frozen=True, slots=True)
class Group:
    """Near duplicates; the chain from one to another may lead over others that are closer to both."""

    rows: Rows
    """Ascending, two or more."""
    representative: int
    """The row that is closest to all others on average; of equals the first."""
    similarities: Floats
    """Of each row to the representative."""


class Forest:
    """Which skills hang together, told pair by pair (union and find, with compressed paths)."""

    def __init__(self, num_skills: int) -> None:
        self._above = np.arange(num_skills)

    def join(self, pairs: Rows) -> None:
        """Each pair `[P, 2]` hangs together from now on.

        n copies make n² pairs, nearly all of skills that hang together already: those never reach the loop.
        """
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            roots = self._roots(pairs[start : start + _PAIRS_AT_ONCE])
            for one, other in roots[roots[:, 0] != roots[:, 1]].tolist():
                low, high = sorted((self._root(one), self._root(other)))
                self._above[high] = low

    def groups(self, vectors: Floats) -> list[Group]:
        """All of two or more, largest first, those of one size by their first row."""
        roots = self._roots(np.arange(len(self._above)))
        order = np.argsort(roots, kind="stable")
        starts = np.flatnonzero(np.diff(roots[order])) + 1
        members = [rows for rows in np.split(order, starts) if len(rows) > 1]
        return [_group(rows, vectors) for rows in sorted(members, key=lambda rows: (-len(rows), rows[0]))]

    def _roots(self, rows: Rows) -> Rows:
        roots: Rows = self._above[rows]
        while (above := self._above[roots]).tobytes() != roots.tobytes():
            roots = above
        self._above[rows] = roots
        return roots

    def _root(self, row: int) -> int:
        while (above := int(self._above[row])) != row:
            self._above[row] = self._above[above]
            row = above
        return row


def first_of_text(texts: Sequence[bytes]) -> Rows:
    """`[N]`: the first row with the same text, which may be the row itself."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(text, row) for row, text in enumerate(texts)], np.int64)


def _group(rows: Rows, vectors: Floats) -> Group:
    own = vectors[rows].astype(np.float64)
    with_others = own @ own.sum(axis=0) - (own * own).sum(axis=1)
    means = with_others / (len(rows) - 1)
    chosen = int(np.flatnonzero(means >= means.max() - _TIE)[0])
    return Group(rows, int(rows[chosen]), (own * own[chosen]).sum(axis=1).astype(np.float32))
