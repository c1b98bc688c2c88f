"""A `VectorIndex` in a collection of Milvus, whose shards nominate; the order is made here.

Shape legend: Q queries, N skills, K results, D embedding dimension.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from skillserve.errors import ConfigError, ServerError
from skillserve_client.exact import Nominees, all_products, exact_order, require_queries
from skillserve_client.vectors import Entries, Mark, Rows
from skillserve_client.wire import Floats

__all__ = ["VECTOR", "Connection", "MilvusIndex"]

VECTOR = "vector"

_MOST_FOUND = 16_384
"""Milvus's own bound on what one search or query returns."""
_MOST_BYTES = 16 << 20
"""Of vectors in one message, well below what gRPC takes."""
_IDS_AT_ONCE = 500
"""Ids in one filter."""


class Connection(Protocol):
    """A client of one server, whose failures are ours."""

    @property
    def uri(self) -> str:
        """Its address, for messages."""

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 -- pymilvus has no usable types
        """A method of pymilvus' client; raises ServerError."""


class MilvusIndex:
    """Skills in one collection, which is loaded and of the right model."""

    def __init__(
        self, connection: Connection, name: str, *, dim: int, consistency: Literal["Strong", "Bounded"] = "Strong"
    ) -> None:
        self._connection = connection
        self._name = name
        self._dim = dim
        self._consistency = consistency
        """Of searches: Strong sees what was just written; what was published and counted does not change any more,
        and Bounded waits for nobody."""
        self._counts: dict[str, int] = {}

    @property
    def dim(self) -> int:
        """D."""
        return self._dim

    def __len__(self) -> int:
        return self._count("")

    def search(self, queries: Floats, k: int, *, namespace: str | None = None) -> tuple[Floats, Rows]:
        """See `VectorIndex`; raises ConfigError for more than Milvus returns, and ServerError."""
        queries = require_queries(queries, self.dim, k)
        chosen = "" if namespace is None else f"namespace == {_quoted(namespace)}"
        available = self._count(chosen)
        if min(k, available) > _MOST_FOUND:
            raise ConfigError(
                "the number of candidates",
                got=str(k),
                wanted=f"at most {_MOST_FOUND}, which is all that Milvus returns",
                fix="Ask for less: --candidates, --top-k",
            )

        def nominate(asked: Floats, num_nominated: int) -> Nominees:
            found = [
                hits for part in self._parts(asked, num_nominated) for hits in self._hits(part, num_nominated, chosen)
            ]
            rough = np.array([[hit["distance"] for hit in hits] for hits in found], np.float32)
            rows = np.array([[hit["entity"]["row"] for hit in hits] for hits in found], np.int64)
            return Nominees(rough, rows, lambda place: _stacked([hit["entity"] for hit in found[place]], self.dim))

        return exact_order(queries, k, nominate, available=available, most=_MOST_FOUND)

    def similarities(self, queries: Floats) -> Floats:
        """See `VectorIndex`. Every vector travels here for it."""
        queries = require_queries(queries, self.dim)
        blocks = [
            all_products(_stacked(block, self.dim), queries)
            for block in self._pages(["row", VECTOR], self._vectors_at_once)
        ]
        return np.concatenate(blocks, axis=1) if blocks else np.empty((len(queries), 0), np.float32)

    def marks(self) -> dict[str, Mark]:
        """See `VectorIndex`."""
        pages = self._pages(["id", "row", "namespace", "digest"], 4_096)
        return {each["id"]: Mark(each["row"], each["namespace"], each["digest"]) for page in pages for each in page}

    def vectors(self, ids: Sequence[str]) -> Floats:
        """See `VectorIndex`."""
        found: dict[str, Any] = {}
        for filters in _id_filters(ids, min(_IDS_AT_ONCE, self._vectors_at_once)):
            found |= {each["id"]: each for each in self._query(filters, ["id", VECTOR])}
        return _stacked([found[skill] for skill in ids], self.dim)

    def upsert(self, entries: Entries) -> None:
        """See `VectorIndex`; raises ServerError."""
        if entries.vectors.shape[1] != self.dim:
            raise ValueError(f"vectors [n, {self.dim}] are needed, not {entries.vectors.shape}")
        self._counts.clear()
        rows = [
            {"id": skill, **mark._asdict(), VECTOR: vector}
            for (skill, mark), vector in zip(entries.marks.items(), entries.vectors, strict=True)
        ]
        for start in range(0, len(rows), self._vectors_at_once):
            self._connection.call("upsert", self._name, rows[start : start + self._vectors_at_once])

    def delete(self, ids: Iterable[str]) -> None:
        """See `VectorIndex`; raises ServerError."""
        self._counts.clear()
        # By a filter of our own: pymilvus quotes ids by Python's rules, and an id with a backslash would stay.
        for filters in _id_filters(list(ids), _IDS_AT_ONCE):
            self._connection.call("delete", self._name, filter=filters)

    @property
    def _vectors_at_once(self) -> int:
        return max(1, min(_MOST_FOUND, _MOST_BYTES // (4 * self.dim)))

    def _parts(self, queries: Floats, num_nominated: int) -> Iterator[Floats]:
        step = max(1, self._vectors_at_once // num_nominated)
        for start in range(0, len(queries), step):
            yield queries[start : start + step]

    def _hits(self, queries: Floats, num_nominated: int, filters: str) -> list[Any]:
        found = list(
            self._connection.call(
                "search",
                self._name,
                data=list(queries),
                filter=filters,
                limit=num_nominated,
                output_fields=["row", VECTOR],
                search_params={"metric_type": "IP"},
                consistency_level=self._consistency,
            )
        )
        if fewest := [len(hits) for hits in found if len(hits) < num_nominated]:
            raise self._incomplete(f"{fewest[0]} nearest skills", f"{num_nominated}")
        return found

    def _pages(self, fields: list[str], size: int) -> Iterator[list[Any]]:
        """All entries, in the order of their rows: Milvus promises none, so a page is a range of rows."""
        wanted, seen, start = len(self), 0, 0
        while seen < wanted:
            page = self._query(f"row >= {start} and row < {start + size}", fields)
            if not page and not self._query(f"row >= {start}", ["count(*)"])[0]["count(*)"]:
                raise self._incomplete(f"{seen} skills", f"{wanted}, as it counts them")
            yield sorted(page, key=lambda each: each["row"])
            seen, start = seen + len(page), start + size

    def _query(self, filters: str, fields: list[str]) -> list[Any]:
        # Counts and marks decide what is published and opened, so they never miss what was just written.
        return list(
            self._connection.call("query", self._name, filter=filters, output_fields=fields, consistency_level="Strong")
        )

    def _count(self, filters: str) -> int:
        if filters not in self._counts:
            self._counts[filters] = int(self._query(filters, ["count(*)"])[0]["count(*)"])
        return self._counts[filters]

    def _incomplete(self, got: str, wanted: str) -> ServerError:
        return ServerError(
            f"collection `{self._name}` in Milvus at `{self._connection.uri}`",
            got=got,
            wanted=wanted,
            fix="It may be loading, or somebody else writes to it. Try again; if it stays so, build the bundle again.",
        )


def _stacked(found: Sequence[Any], dim: int) -> Floats:
    return np.array([each[VECTOR] for each in found], np.float32).reshape(len(found), dim)


def _quoted(text: str) -> str:
    """As a literal of Milvus's filters, which escape as JSON does."""
    return json.dumps(text, ensure_ascii=False)


def _id_filters(ids: Sequence[str], size: int) -> Iterator[str]:
    for start in range(0, len(ids), size):
        yield f"id in [{', '.join(map(_quoted, ids[start : start + size]))}]"
