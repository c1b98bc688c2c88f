"""Pairs whose sides a model reads apart (score kind `max_sim`): where a side ends, and how none is read twice.

Such a pair is two texts behind one opening token each: `[CLS] request [SEP] [CLS] skill [SEP]`. Reading texts is what
costs; so pairs of one request are computed one behind the other, and what was read of a text may be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from skillserve.card import ScoreKind
from skillserve.tensors import Ids

__all__ = ["Remembered", "reading_order", "sides"]


def sides(pair: Ids) -> tuple[Ids, Ids]:
    """Request and skill, each with its opening token; of a sequence that opens once, the second one is empty.

    >>> [side.tolist() for side in sides(np.array([101, 7, 102, 101, 8, 9, 102], np.int32))]
    [[101, 7, 102], [101, 8, 9, 102]]
    """
    inner = np.flatnonzero(pair[1:] == pair[0])
    cut = int(inner[0]) + 1 if inner.size else len(pair)
    return pair[:cut], pair[cut:]


def reading_order(score_kind: ScoreKind) -> Callable[[Ids], Any]:
    """The key by which sequences are sorted before they are computed.

    By length, so that little is padded; where sides are read apart by request first, so that it is read once.
    """
    return _request_then_length if score_kind == "max_sim" else len


def _request_then_length(pair: Ids) -> tuple[bytes, int]:
    request, _ = sides(pair)
    return request.tobytes(), len(pair)


class Measured(Protocol):
    """An array of whatever library."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        ...


States = TypeVar("States", bound=Measured)


@dataclass(slots=True)
class Remembered(Generic[States]):
    """States of texts that were read; once there are more than `most_bytes`, all are forgotten."""

    most_bytes: int = 2 << 30
    _known: dict[bytes, States] = field(default_factory=dict)
    _num_bytes: int = 0

    def recall(self, texts: Sequence[bytes], read: Callable[[list[int]], Iterable[States]]) -> list[States]:
        """States of each text, which is named by its ids; `read` gets the places of new ones, no text twice."""
        if self._num_bytes > self.most_bytes:
            self._known.clear()
            self._num_bytes = 0
        new = {text: place for place, text in enumerate(texts) if text not in self._known}
        if new:
            for text, states in zip(new, read(list(new.values())), strict=True):
                self._known[text] = states
                self._num_bytes += states.nbytes
        return [self._known[text] for text in texts]
