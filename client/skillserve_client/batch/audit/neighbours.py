"""Nearest neighbours and close pairs of all skills, exactly, a block at a time.

Shape legend: N skills, B skills of a block, K neighbours, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from skillserve_client.index import FlatIndex
from skillserve_client.vectors import Entries, Mark, Rows
from skillserve_client.wire import Floats

__all__ = ["Block", "neighbour_blocks"]

_BLOCK_BYTES = 256 << 20
_RESULT_BYTES = 12
"""Of one nominee of a search: similarity and row."""
_MOST_BLOCK_ROWS = 1_024
"""More make no search faster, and the bar slower."""
_WIDER = 4
"""How many times more neighbours are asked for where all of them were close."""


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbours of the B skills from `first` on."""

    first: int
    similarities: Floats
    """`[B, K]`, best first."""
    rows: Rows
    """`[B, K]`; no skill is its own neighbour, and equal similarities are ordered by row."""
    pairs: Rows
    """`[P, 2]`: pairs at or above the threshold, the smaller row in front, which is one of this block."""


def neighbour_blocks(vectors: Floats, *, num_neighbours: int, threshold: float) -> Iterator[Block]:
    """All skills in blocks; K = min(num_neighbours, N - 1), and every close pair of the catalogue once."""
    marks = {str(row): Mark(row, namespace="", digest="") for row in range(len(vectors))}
    index = FlatIndex.of(Entries(marks, vectors))
    num_rows = max(1, min(_MOST_BLOCK_ROWS, _BLOCK_BYTES // (_RESULT_BYTES * len(vectors))))
    width = min(num_neighbours, len(vectors) - 1) + 1
    for first in range(0, len(vectors), num_rows):
        own = np.arange(first, min(first + num_rows, len(vectors)))
        similarities, rows = index.search(vectors[own], width)
        pairs = _close_pairs(index, vectors, own, similarities, rows, threshold)
        yield Block(first, *_without_self(own, similarities, rows), pairs)


def _without_self(own: Rows, similarities: Floats, rows: Rows) -> tuple[Floats, Rows]:
    """One column less: the skill itself, or the last one where more than K copies of it stand before it."""
    is_self = rows == own[:, None]
    is_self[~is_self.any(axis=1), -1] = True
    shape = len(own), rows.shape[1] - 1
    return similarities[~is_self].reshape(shape), rows[~is_self].reshape(shape)


def _close_pairs(
    index: FlatIndex, vectors: Floats, own: Rows, similarities: Floats, rows: Rows, threshold: float
) -> Rows:
    """`[P, 2]`: a list whose last neighbour is still close may have missed some, and is asked for anew, longer."""
    found = []
    while True:
        i, place = np.nonzero(similarities >= np.float32(threshold))
        pairs = np.stack([own[i], rows[i, place]], axis=1)
        cut_off = (similarities[:, -1] >= np.float32(threshold)) & (rows.shape[1] < len(index))
        found.append(pairs[~cut_off[i] & (pairs[:, 0] < pairs[:, 1])])
        if not cut_off.any():
            return np.concatenate(found)
        own = own[cut_off]
        similarities, rows = index.search(vectors[own], rows.shape[1] * _WIDER)
