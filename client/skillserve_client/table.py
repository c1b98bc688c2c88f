"""The one door to PyArrow for bundles: the skills as a table, one row per skill, in the order of the index.

Columns: id, name, description, namespace, body (text), fields (JSON), rerank_ids (list of int32: the reranker's
skill side, tokenised once; empty lists where the bundle has no reranker), digest (of the skill; bundles from before
indexes were updated lack it).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skillserve.errors import BundleError
from skillserve.records import Skill
from skillserve.tensors import Ids
from skillserve_client.manifest import skill_digest
from skillserve_client.vectors import Mark, Rows

__all__ = ["SkillTable"]

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "name", "description", "namespace", "body", "fields")),
        ("rerank_ids", pa.list_(pa.int32())),
        ("digest", pa.string()),
    ]
)
_TEXTS = _SCHEMA.names[:6]
_WITHOUT_DIGESTS = _SCHEMA.remove(_SCHEMA.get_field_index("digest"))


class SkillTable:
    """Skills with their reranker ids; rows are read when they are asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._columns: dict[str, Any] = {
            name: table.column(name).combine_chunks() if table.num_rows else table.column(name)
            for name in _SCHEMA.names
        }
        self._num_rows = int(table.num_rows)
        ids = self._columns["rerank_ids"]
        self._offsets = np.asarray(ids.offsets) if self._num_rows else np.zeros(1, np.int32)
        self._values = np.asarray(ids.values) if self._num_rows else np.empty(0, np.int32)
        self._rows_of: dict[str, Rows] | None = None

    @classmethod
    def build(cls, skills: Sequence[Skill], rerank_ids: Sequence[Ids] | None) -> SkillTable:
        """Make a table; texts must be encodable as UTF-8 (`skillserve.framing.mend`)."""
        columns = {
            "id": [skill.id for skill in skills],
            "name": [skill.name for skill in skills],
            "description": [skill.description for skill in skills],
            "namespace": [skill.namespace for skill in skills],
            "body": [skill.body for skill in skills],
            "fields": [json.dumps(dict(skill.fields), ensure_ascii=False, sort_keys=True) for skill in skills],
        }
        ids = rerank_ids if rerank_ids is not None else [np.empty(0, np.int32)] * len(skills)
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(ids), pa.int32()))
        digests = pa.array([skill_digest(skill) for skill in skills], pa.string())
        return cls(pa.table([*(pa.array(c, pa.string()) for c in columns.values()), lists, digests], schema=_SCHEMA))

    def __len__(self) -> int:
        return self._num_rows

    def skill(self, row: int) -> Skill:
        """The skill at a row of the index."""
        text = {name: str(self._columns[name][row].as_py()) for name in _TEXTS}
        return Skill(**{**text, "fields": json.loads(text["fields"])})

    def heading(self, row: int) -> tuple[str, str, str]:
        """Id, name and description: what a hit shows."""
        return (
            str(self._columns["id"][row].as_py()),
            str(self._columns["name"][row].as_py()),
            str(self._columns["description"][row].as_py()),
        )

    def ids(self) -> list[str]:
        """All skill ids, in row order."""
        return [str(skill_id) for skill_id in self._columns["id"].to_pylist()]

    def rows_of(self, namespace: str) -> Rows:
        """The rows of a namespace's skills, ascending; none if it has none."""
        if self._rows_of is None:
            found: dict[str, list[int]] = {}
            for row, name in enumerate(self._columns["namespace"].to_pylist()):
                found.setdefault(name, []).append(row)
            self._rows_of = {name: np.array(rows, np.int64) for name, rows in found.items()}
        return self._rows_of.get(namespace, np.empty(0, np.int64))

    def marks(self) -> dict[str, Mark]:
        """What an index must hold of these skills, by id, in row order."""
        columns = (self._columns[name].to_pylist() for name in ("id", "namespace", "digest"))
        return {
            skill: Mark(row, namespace, digest)
            for row, (skill, namespace, digest) in enumerate(zip(*columns, strict=True))
        }

    def rerank_ids(self, row: int) -> Ids:
        """The reranker's bare ids of a skill, a view."""
        ids: Ids = self._values[self._offsets[row] : self._offsets[row + 1]]
        return ids

    def to_bytes(self) -> bytes:
        """The table as a Parquet file."""
        sink = pa.BufferOutputStream()
        arrays = [self._columns[name] for name in _SCHEMA.names]
        pq.write_table(pa.table(arrays, schema=_SCHEMA), sink, compression="zstd")
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, content: bytes, *, subject: str) -> SkillTable:
        """Read a verified Parquet file; raises BundleError if it holds other columns."""
        try:
            table = pq.read_table(pa.BufferReader(content))
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(subject, str(error).splitlines()[0]) from error
        if table.schema.equals(_WITHOUT_DIGESTS):
            table = table.append_column("digest", pa.array([""] * table.num_rows, pa.string()))
        if not table.schema.equals(_SCHEMA):
            raise _unreadable(subject, f"columns {', '.join(table.schema.names)}")
        return cls(table)


def _unreadable(subject: str, got: str) -> BundleError:
    return BundleError(
        subject,
        got=got,
        wanted=f"a table of {', '.join(_SCHEMA.names)}",
        fix="Build the bundle again: skillserve index CATALOGUE --force",
    )
