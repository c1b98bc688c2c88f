"""The one door to PyArrow for shards, written and read back: Parquet (zstd) or JSON Lines.

Every Parquet file says in its metadata what it is of: job, options, digests of the models, digest of its input.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skillserve.errors import OutputError
from skillserve_client.batch.receipts import JobName

__all__ = ["Format", "metadata_of", "read_shard", "shard_bytes"]

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
    schema = _schema(job, dim).with_metadata(metadata_of(metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink, compression="zstd")
    return bytes(sink.getvalue())


def read_shard(content: bytes, file_format: Format, *, job: JobName, subject: str) -> pa.Table:
    """The rows of a verified shard, with the columns that its job writes; raises OutputError for any others."""
    try:
        if file_format == "jsonl":
            rows = [json.loads(line) for line in content.splitlines()]
            dim = len(rows[0]["embedding"]) if job == "embed" and rows else None
            table = pa.Table.from_pylist(rows, schema=_schema(job, dim))
        else:
            table = pq.read_table(pa.BufferReader(content))
            vectors = table.schema.field("embedding").type if "embedding" in table.schema.names else None
            dim = vectors.list_size if isinstance(vectors, pa.FixedSizeListType) else None
    except (pa.ArrowException, ValueError, TypeError, KeyError, IndexError, OSError) as error:
        raise _unreadable(subject, job, f"no such table: {str(error).splitlines()[0]}") from error
    if not table.schema.equals(_schema(job, dim)) or (job == "embed") != (dim is not None):
        raise _unreadable(subject, job, f"columns {', '.join(table.schema.names)}")
    return table


def metadata_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """What a Parquet file says of itself."""
    return {f"skillserve.{key}": _text(value) for key, value in facts.items()}


def _schema(job: JobName, dim: int | None) -> pa.Schema:
    return pa.schema(_COLUMNS[job] if dim is None else [*_COLUMNS[job], ("embedding", pa.list_(pa.float32(), dim))])


def _unreadable(subject: str, job: JobName, got: str) -> OutputError:
    return OutputError(
        subject,
        got=got,
        wanted=f"a table of {', '.join(name for name, _ in _COLUMNS[job])}" + (", embedding" * (job == "embed")),
        fix=f"Remove the folder and run `skillserve score {job}` again.",
    )


def _lines(rows: Iterable[Mapping[str, Any]]) -> Iterable[bytes]:
    for row in rows:
        plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in row.items()}
        yield (json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
