"""Cutting the input into shards by position, each known by the digest of its rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Generic

from skillserve_client.batch.inputs import Item, R
from skillserve_client.batch.receipts import Reject

__all__ = ["MOST_SHARD_BYTES", "Shard", "cut_shards"]

MOST_SHARD_BYTES = 64 << 20
"""A shard ends behind the row that brings its rows to so many bytes: memory is eaten by text, not by rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard(Generic[R]):
    """Neighbouring rows of the input."""

    index: int
    first_row: int
    items: tuple[Item[R], ...]
    rejects: tuple[Reject, ...]
    digest: str
    """SHA-256 over positions, records, and what is wrong with the others."""

    @property
    def num_rows(self) -> int:
        """Of the input."""
        return len(self.items) + len(self.rejects)


def cut_shards(stream: Iterable[Item[R] | Reject], *, shard_rows: int) -> Iterator[Shard[R]]:
    """Every row in exactly one shard, in order; where a shard ends depends on nothing but the rows up to there."""
    growing: _Growing[R] = _Growing(0, 0)
    for found in stream:
        growing.add(found)
        if growing.num_rows >= shard_rows or growing.num_bytes >= MOST_SHARD_BYTES:
            yield growing.shard()
            growing = _Growing(growing.index + 1, growing.first_row + growing.num_rows)
    if growing.num_rows:
        yield growing.shard()


class _Growing(Generic[R]):
    """A shard that is not full yet."""

    def __init__(self, index: int, first_row: int) -> None:
        self.index, self.first_row = index, first_row
        self.num_bytes = self.num_rows = 0
        self._items: list[Item[R]] = []
        self._rejects: list[Reject] = []
        self._hash = hashlib.sha256()

    def add(self, found: Item[R] | Reject) -> None:
        if isinstance(found, Item):
            self._items.append(found)
            content = [getattr(found.record, each.name) for each in fields(found.record)]
        else:
            self._rejects.append(found)
            content = [found.where, found.id, found.reason]
        # Escaped, since texts may hold halves of surrogate pairs.
        line = json.dumps([found.row, type(found).__name__, content], sort_keys=True).encode()
        self._hash.update(line + b"\n")
        self.num_bytes += len(line)
        self.num_rows += 1

    def shard(self) -> Shard[R]:
        return Shard(
            index=self.index,
            first_row=self.first_row,
            items=tuple(self._items),
            rejects=tuple(self._rejects),
            digest=self._hash.hexdigest(),
        )
