"""The skills of an audit: their vectors, names and the digests of their texts, all from one and the same input.

Shape legend: N skills, D embedding dimension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from skillserve.errors import OutputError
from skillserve.framing import mend
from skillserve.text import skill_text
from skillserve_client.batch.embed import catalogue_of
from skillserve_client.batch.finished import Finished
from skillserve_client.batch.shards import cut_shards
from skillserve_client.vectors import Rows
from skillserve_client.wire import Floats

__all__ = ["Skills", "read_skills_of"]

_NOT_UNIT = 1e-3
"""How far a row's length may be from 1: float32 sums of 4,096 squares stay within 1e-5, fp16 graphs within 5e-4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skills:
    """What is audited: all embedded skills, in the order of the catalogue."""

    positions: Rows
    """`[N]`: the `row` of each in the catalogue, where rejects leave gaps."""
    ids: list[str]
    names: list[str]
    texts: list[bytes]
    """SHA-256 of each skill's whole text, what the embedder cuts off included."""
    vectors: Floats
    """`[N, D]` unit rows."""

    def __len__(self) -> int:
        return len(self.ids)


def read_skills_of(vectors: Finished, paths: Sequence[Path]) -> Skills:
    """Join vectors with the catalogue that they were computed from.

    Raises OutputError for vectors that are damaged, no unit vectors, fewer than two, or of another input, and
    CatalogueError for a source that cannot be read.
    """
    positions, ids, matrix = _vectors(vectors)
    names, texts = _labels(vectors, paths, dict(zip(positions.tolist(), ids, strict=True)))
    return Skills(positions=positions, ids=ids, names=names, texts=texts, vectors=matrix)


def _vectors(vectors: Finished) -> tuple[Rows, list[str], Floats]:
    positions: list[int] = []
    ids: list[str] = []
    parts: list[Floats] = []
    for entry, table in vectors.tables():
        if not table.num_rows:
            continue
        positions += table.column("row").to_pylist()
        ids += table.column("id").to_pylist()
        part = np.asarray(table.column("embedding").combine_chunks().flatten(), np.float32).reshape(table.num_rows, -1)
        lengths = np.linalg.norm(part, axis=1)
        # A comparison with NaN is false, so the sound ones are asked for.
        (faulty,) = np.nonzero(~(np.abs(lengths - 1) <= _NOT_UNIT))
        if len(faulty):
            row, length = int(faulty[0]), lengths[faulty[0]]
            raise _refused(
                vectors, f"a vector of length {length:.4g} for `{ids[len(ids) - len(part) + row]}`", entry.file
            )
        parts.append(part)
    if len(ids) < 2:
        raise OutputError(
            f"vectors `{vectors.path}`",
            got=f"{len(ids)} skills",
            wanted="at least two, since an audit compares skills",
            fix="Embed a larger catalogue: skillserve score embed CATALOGUE --out VECTORS",
        )
    if len({part.shape[1] for part in parts}) > 1:
        raise _refused(vectors, "vectors of several dimensions", "its shards")
    return np.array(positions, np.int64), ids, np.concatenate(parts)


def _labels(vectors: Finished, paths: Sequence[Path], embedded: dict[int, str]) -> tuple[list[str], list[bytes]]:
    """Name and text digest of each embedded row, the catalogue compared with what was embedded, shard by shard."""
    catalogue = catalogue_of(paths)
    catalogue.check()
    names: list[str] = []
    texts: list[bytes] = []
    shards = cut_shards(catalogue, shard_rows=int(vectors.manifest.identity.options["shard_rows"]))
    for shard, entry in zip_longest(shards, vectors.manifest.shards):
        if shard is None or entry is None or shard.digest != entry.input_digest:
            first = shard.first_row if shard is not None else entry.first_row
            raise OutputError(
                f"vectors `{vectors.path}`",
                got=f"vectors of another input, from row {first} on at least",
                wanted="the vectors of exactly this catalogue",
                fix="Embed it again, only what changed is computed: skillserve score embed CATALOGUE "
                f"--out {vectors.path}",
            )
        for item in shard.items:
            if item.row in embedded:
                names.append(mend(item.record.name))
                texts.append(hashlib.sha256(mend(skill_text(item.record)).encode()).digest())
    return names, texts


def _refused(vectors: Finished, got: str, where: str) -> OutputError:
    return OutputError(
        f"vectors `{vectors.path}`",
        got=f"{got} in {where}",
        wanted="unit vectors of one embedder",
        fix="Embed the catalogue anew: skillserve score embed CATALOGUE --out VECTORS --fresh",
    )
