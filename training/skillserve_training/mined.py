"""Mined negatives as a file: Parquet, one row for each request and skill, and in its schema where they come from.

Rows of the kind `negative` were drawn; the others are candidates that a guard left out, named after the guard, so that
anyone can look at what it takes for a fitting skill.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skillserve.errors import ContractError, UsageError
from skillserve.publish import write_bytes
from skillserve_training.dataset import TrainingData

__all__ = ["NEGATIVE", "Mined", "read_mined", "write_mined"]

NEGATIVE = "negative"
"""The kind of a row that was drawn."""

_PROVENANCE = b"skillserve.mined"
_FIX = "Mine them anew: skillserve mine --data DATA --with bm25 --out mined.parquet"


@dataclass(frozen=True, slots=True)
class Mined:
    """Wrong skills to learn from."""

    negatives: Mapping[str, tuple[str, ...]]
    """Query id → skill ids, in the order of their merged rank: the hardest first."""
    provenance: Mapping[str, Any]
    """Data, part, systems, settings, counts and versions."""

    @property
    def digest(self) -> str:
        """SHA-256 over the negatives."""
        return hashlib.sha256(json.dumps(self.negatives, sort_keys=True).encode()).hexdigest()

    def of(self, part: TrainingData) -> list[tuple[int, ...]]:
        """Per request of `part` the positions of its negatives among the part's skills, the hardest first.

        ContractError if they were mined for another part: with another hold-out, a negative may be held out here.
        """
        if self.provenance["part"] != part.part_digest:
            raise ContractError(
                "mined negatives",
                got=f"those of another part of the data ({self.provenance['cut'] or 'all of it'})",
                wanted=f"those of the part that is trained on ({part.cut or 'all of it'})",
                fix=f"Mine and train with one --holdout-share. {_FIX}",
            )
        position = {skill.id: place for place, skill in enumerate(part.skills)}
        return [tuple(position[skill] for skill in self.negatives.get(query.id, ())) for query in part.queries]


def write_mined(path: Path, rows: pa.Table, provenance: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all; UsageError if the disk does not allow it."""
    table = rows.replace_schema_metadata({_PROVENANCE: json.dumps(provenance, ensure_ascii=False).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    try:
        write_bytes(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise UsageError(
            f"mined negatives `{path}`",
            got=error.strerror or str(error),
            wanted="a place with room for them; nothing was written",
            fix="Make room, or name another file with --out, and mine again.",
        ) from error


def read_mined(path: Path, data: TrainingData) -> Mined:
    """The negatives of a file that was mined from these data, all of them or the part that is trained on.

    ContractError if the file is no such file, or was mined from other data.
    """
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
        provenance = json.loads((table.schema.metadata or {})[_PROVENANCE])
        drawn = table.filter(pc.equal(table["kind"], NEGATIVE)).sort_by("merged_rank")
        rows = zip(drawn["query_id"].to_pylist(), drawn["skill_id"].to_pylist(), strict=True)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ContractError(
            f"mined negatives `{path}`",
            got=f"no such file ({type(error).__name__}: {' '.join(str(error).split())})",
            wanted="a file that `skillserve mine` wrote",
            fix=_FIX,
        ) from error
    if provenance["data"] != data.digest:
        raise ContractError(
            f"mined negatives `{path}`",
            got=f"those of the data {provenance['data'][:12]}",
            wanted=f"those of the data that are trained on, {data.digest[:12]}",
            fix=_FIX,
        )
    negatives: dict[str, list[str]] = {}
    for query, skill in rows:
        negatives.setdefault(query, []).append(skill)
    mined = Mined({query: tuple(skills) for query, skills in negatives.items()}, provenance)
    if data.cut:
        mined.of(data)
    return mined
