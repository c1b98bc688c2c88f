"""The one door to PyArrow for what batches write: shards as Parquet (zstd) or JSON Lines.

Every Parquet file says in its metadata what it is of: job, options, digests of the models, digest of its input.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skillserve_client.batch.receipts import JobName

__all__ = ["Format", "shard_bytes"]

Format = Literal["parquet", "jsonl"]

_HIT = pa.struct(
    [
        ("rank", pa.int32()),
        ("skill_id", pa.string()),
        ("name", pa.string()),
        ("description", pa.string()),
        ("score", pa.float32()),
        ("similarity", pa.float32()),
        ("reranked", pa.bool_()),
        ("probability", pa.float64()),
    ]
)
_PLACE = [("row", pa.int64()), ("id", pa.string())]
_COLUMNS: dict[JobName, list[tuple[str, Any]]] = {
    "embed": [*_PLACE],
    "rank": [
        *_PLACE,
        ("status", pa.string()),
        ("probability", pa.float64()),
        ("reranked", pa.bool_()),
        ("hits", pa.list_(_HIT)),
        ("near_misses", pa.list_(_HIT)),
        ("notes", pa.list_(pa.string())),
    ],
    "pairs": [
        *_PLACE,
        ("skill_id", pa.string()),
        *((name, pa.float32()) for name in ("score", "logit", "first_stage", "similarity")),
    ],
}
"""`row` is the position in the input, over all sources, from 0: it orders the shards' rows and finds the input's."""


def shard_bytes(
    rows: Sequence[Mapping[str, Any]],
    file_format: Format,
    *,
    job: JobName,
    dim: int | None,
    metadata: Mapping[str, Any],
) -> bytes:
    """A shard as a file; the same rows and metadata give the same bytes."""
    if file_format == "jsonl":
        return b"".join(_lines(rows))
    schema = pa.schema(
        _COLUMNS[job] if dim is None else [*_COLUMNS[job], ("embedding", pa.list_(pa.float32(), dim))],
        metadata={f"skillserve.{key}": _text(value) for key, value in metadata.items()},
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink, compression="zstd")
    return bytes(sink.getvalue())


def _lines(rows: Iterable[Mapping[str, Any]]) -> Iterable[bytes]:
    for row in rows:
        plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in row.items()}
        yield (json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
