"""Token embeddings of a catalogue's skills, kept in 8 bits, so that reranking reads nothing but the request.

A row is the direction of a token, its largest number scaled to 127; tokens that weigh nothing are left out. Eight bits
turn a cosine by about 0.001. They are read into memory whole: 123 kB for 320 tokens of a skill at D = 384.

Shape legend: N skills, K tokens that are kept, of all skills or of some; Q tokens of a request, D embedding dimension.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from skillserve.errors import BundleError
from skillserve.max_sim import Interaction, max_sim, unit_rows
from skillserve.tensors import token_budget_batches
from skillserve_client.blas import one_thread
from skillserve_client.vectors import Rows
from skillserve_client.wire import Floats

__all__ = ["SkillTokens", "TokenEmbeddings"]

_LARGEST = 127
_TOKENS_AT_ONCE = 2_048
"""Tokens of skills that are compared together, 3 MB in float32 at D = 384: what a core's cache about holds."""
_ARRAYS = {"rows": "int8 of 2 dimensions", "factors": "float32 of 1 dimensions", "ends": "int64 of 1 dimensions"}
"""What a file holds."""


@dataclass(frozen=True, slots=True)
class SkillTokens:
    """Those of one skill."""

    rows: npt.NDArray[np.int8]
    """`[K, D]`"""
    factors: Floats
    """`[K]`, which make rows of length 1 of them"""

    @classmethod
    def of(cls, embedded: Floats) -> Self:
        """From what a token embedder says of a skill, `[L, D]`."""
        units = unit_rows(embedded)
        largest = np.abs(units).max(axis=1, initial=0) / np.float32(_LARGEST)
        return cls(np.rint(units / largest[:, None]).astype(np.int8), largest.astype(np.float32))


@dataclass(frozen=True, slots=True)
class TokenEmbeddings:
    """Those of all skills, by row of the index."""

    rows: npt.NDArray[np.int8]
    """`[K, D]`"""
    factors: Floats
    """`[K]`"""
    ends: npt.NDArray[np.int64]
    """`[N]`, ends of skills among the rows"""
    how: Interaction

    @classmethod
    def joined(cls, skills: Iterable[SkillTokens], dim: int, how: Interaction) -> Self:
        """Put skills one behind the other."""
        parts = list(skills)
        return cls(
            rows=np.concatenate([np.empty((0, dim), np.int8), *(part.rows for part in parts)]),
            factors=np.concatenate([np.empty(0, np.float32), *(part.factors for part in parts)]),
            ends=np.cumsum([len(part.rows) for part in parts], dtype=np.int64),
            how=how,
        )

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.rows.shape[1])

    def skill(self, row: int) -> SkillTokens:
        """Those of one skill, a view."""
        own = slice(int(self.ends[row - 1]) if row else 0, int(self.ends[row]))
        return SkillTokens(self.rows[own], self.factors[own])

    def scores(self, asked: Floats, candidates: Sequence[int] | Rows) -> Floats:
        """`[n]` of a request's token embeddings `[Q, D]` beside the skills at these rows."""
        parts = [self.skill(int(row)) for row in candidates]
        blocks = token_budget_batches([len(part.rows) for part in parts], max_tokens=_TOKENS_AT_ONCE)
        with one_thread():
            scores = [self._compared(asked, parts[block]) for block in blocks]
        return np.concatenate([np.empty(0, np.float32), *scores])

    def _compared(self, asked: Floats, parts: Sequence[SkillTokens]) -> Floats:
        offered = np.concatenate([part.rows for part in parts]).astype(np.float32)
        factors = np.concatenate([part.factors for part in parts])
        ends = np.cumsum([len(part.rows) for part in parts], dtype=np.int64)
        return max_sim(asked, offered, ends, self.how, factors=factors)

    def to_bytes(self) -> bytes:
        """As a file of the bundle; `how` stands in its manifest."""
        sink = io.BytesIO()
        np.savez(sink, **{name: getattr(self, name) for name in _ARRAYS})
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, how: Interaction, *, subject: str) -> Self:
        """Read a verified file; raises BundleError if it holds something else."""
        try:
            arrays = np.load(io.BytesIO(content), allow_pickle=False)
            rows, factors, ends = (arrays[name] for name in _ARRAYS)
        # IndexError: an array alone. RuntimeError: an archive that is encrypted or compressed in some other way.
        except (ValueError, LookupError, OSError, EOFError, RuntimeError, BadZipFile) as error:
            raise _unreadable(subject, str(error).partition("\n")[0] or type(error).__name__) from error
        kinds = tuple(f"{array.dtype.name} of {array.ndim} dimensions" for array in (rows, factors, ends))
        if kinds != tuple(_ARRAYS.values()):
            raise _unreadable(subject, ", ".join(kinds))
        edges = np.concatenate([[0], ends])
        if not len(rows) == len(factors) == edges[-1] or (np.diff(edges) < 0).any():
            raise _unreadable(subject, f"{len(rows)} rows, {len(factors)} factors, {edges[-1]} tokens")
        return cls(rows, factors, ends, how)


def _unreadable(subject: str, got: str) -> BundleError:
    return BundleError(
        subject,
        got=got,
        wanted=", ".join(f"{name} {kind}" for name, kind in _ARRAYS.items()) + ", which fit together",
        fix="Build the bundle again: skillserve index CATALOGUE --force",
    )
