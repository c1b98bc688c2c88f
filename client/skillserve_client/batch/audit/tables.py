"""The one door to PyArrow for audits: the tables that are written, a part at a time.

Every Parquet file says in its metadata what it is of; all are compressed with zstd.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skillserve_client.batch.audit.catalogue import Skills
from skillserve_client.batch.audit.categories import Assigned
from skillserve_client.batch.audit.groups import Group
from skillserve_client.batch.audit.hubs import Crowding, are_hubs
from skillserve_client.batch.audit.taxonomy import Taxonomy
from skillserve_client.batch.files import Format, metadata_of
from skillserve_client.vectors import Rows
from skillserve_client.wire import Floats

__all__ = ["category_parts", "duplicate_parts", "hub_parts", "neighbour_parts", "write_table"]

_ROWS_AT_ONCE = 4_096
_SKILL = [("row", pa.int64()), ("id", pa.string()), ("name", pa.string())]
"""`row` is the position in the catalogue, over all sources, from 0, as in vectors."""
_NEIGHBOUR = pa.struct(
    [("rank", pa.int32()), ("skill_id", pa.string()), ("name", pa.string()), ("similarity", pa.float32())]
)
_SCHEMAS = {
    "neighbours": pa.schema([*_SKILL, ("neighbours", pa.list_(_NEIGHBOUR))]),
    "duplicates": pa.schema(
        [
            ("group", pa.int64()),
            ("size", pa.int64()),
            *_SKILL,
            ("representative", pa.bool_()),
            ("similarity", pa.float32()),
            ("copy_of", pa.string()),
        ]
    ),
    "hubs": pa.schema(
        [*_SKILL, ("occurrences", pa.int64()), ("hub", pa.bool_()), ("rankings", pa.int64()), ("first", pa.int64())]
    ),
    "categories": pa.schema(
        [
            *_SKILL,
            ("major", pa.string()),
            ("sub", pa.string()),
            *((name, pa.float32()) for name in ("similarity", "margin", "major_margin")),
            ("runner_up", pa.string()),
        ]
    ),
}

Columns = Sequence[Any]
"""Arrays in the order of a schema."""


def write_table(
    folder: Path, name: str, parts: Iterable[Columns], file_format: Format, metadata: Mapping[str, Any]
) -> tuple[Path, int]:
    """Write a table of these parts; returns its file and how many rows it has."""
    path, num_rows = folder / f"{name}.{file_format}", 0
    schema = _SCHEMAS[name].with_metadata(metadata_of(metadata))
    batches = (pa.record_batch(list(part), schema=schema) for part in parts)
    with path.open("wb") as file:
        if file_format == "jsonl":
            for batch in batches:
                num_rows += batch.num_rows
                file.writelines(_line(row) for row in batch.to_pylist())
        else:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for batch in batches:
                    num_rows += batch.num_rows
                    writer.write_batch(batch)
    return path, num_rows


def neighbour_parts(skills: Skills, similarities: Floats, rows: Rows) -> Iterator[Columns]:
    """Each skill with its nearest `[N, K]`, in the order of the catalogue."""
    ids, names = _texts(skills.ids), _texts(skills.names)
    for own in _parts(np.arange(len(skills))):
        near = rows[own]
        size, width = near.shape
        ranks = np.tile(np.arange(1, width + 1, dtype=np.int32), size)
        fields = [ranks, ids.take(near.ravel()), names.take(near.ravel()), similarities[own].ravel()]
        found = pa.StructArray.from_arrays([_array(each) for each in fields], fields=list(_NEIGHBOUR))
        ends = _array(np.arange(0, size * width + 1, width, dtype=np.int32) if width else np.zeros(size + 1, np.int32))
        yield *_skill_columns(skills, own), pa.ListArray.from_arrays(ends, found)


def duplicate_parts(skills: Skills, groups: Sequence[Group], first_of_text: Rows) -> Iterator[Columns]:
    """Members of groups, group after group."""
    for number, group in enumerate(groups):
        size = len(group.rows)
        copied = [
            None if first == row else skills.ids[first]
            for row, first in zip(group.rows.tolist(), first_of_text[group.rows].tolist(), strict=True)
        ]
        yield (
            _array(np.full(size, number)),
            _array(np.full(size, size)),
            *_skill_columns(skills, group.rows),
            _array(group.rows == group.representative),
            _array(group.similarities),
            pa.array(copied, pa.string()),
        )


def hub_parts(skills: Skills, occurrences: Rows, crowding: Crowding | None) -> Iterator[Columns]:
    """All skills, those that crowd most first: by rankings of requests where there are any, else by k-occurrence."""
    hubs = are_hubs(occurrences)
    leading = occurrences if crowding is None else crowding.rankings
    for own in _parts(np.lexsort((-occurrences, -leading))):
        ranked = (
            [pa.nulls(len(own), pa.int64())] * 2
            if crowding is None
            else [_array(crowding.rankings[own]), _array(crowding.first[own])]
        )
        yield *_skill_columns(skills, own), _array(occurrences[own]), _array(hubs[own]), *ranked


def category_parts(skills: Skills, taxonomy: Taxonomy, assigned: Assigned) -> Iterator[Columns]:
    """Each skill with its category, in the order of the catalogue."""
    majors = _texts([category.major or None for category in taxonomy.categories])
    subs, titles = (_texts([getattr(category, name) for category in taxonomy.categories]) for name in ("sub", "title"))
    for own in _parts(np.arange(len(skills))):
        chosen = assigned.category[own]
        yield (
            *_skill_columns(skills, own),
            majors.take(chosen),
            subs.take(chosen),
            _array(assigned.similarity[own]),
            _array(assigned.margin[own]),
            pa.array(assigned.major_margin[own], from_pandas=True),  # NaN becomes null
            titles.take(assigned.runner_up[own]),
        )


def _parts(rows: Rows) -> Iterator[Rows]:
    yield from (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))


def _skill_columns(skills: Skills, rows: Rows) -> tuple[Any, Any, Any]:
    chosen = rows.tolist()
    ids, names = ([texts[row] for row in chosen] for texts in (skills.ids, skills.names))
    return _array(skills.positions[rows]), _texts(ids), _texts(names)


def _array(values: Any) -> Any:  # noqa: ANN401 - numpy's or Arrow's
    return values if isinstance(values, pa.Array) else pa.array(values)


def _texts(texts: Sequence[str | None]) -> Any:  # noqa: ANN401 - Arrow has no types
    return pa.array(texts, pa.string())


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
