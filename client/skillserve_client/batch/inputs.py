"""The rows of all sources, in order, each an item or a reject; nothing but the row at hand is in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from skillserve.errors import CatalogueError, OutputError
from skillserve.framing import mend
from skillserve.records import Pair, Query, Skill
from skillserve.rows import Faults, column_names, count_rows, read_rows
from skillserve_client.batch.receipts import Reject

__all__ = ["Item", "Parse", "R", "Sources"]

R = TypeVar("R", Skill, Query, Pair)

Parse = Callable[[str, Mapping[str, Any], Faults], R | None]
"""Makes a record of a row, or notes what is wrong with it: one of `skillserve.skillfile`'s."""

_MOST_REASON_CHARS = 500
"""A reason may quote the row, and the row may be of megabytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item(Generic[R]):
    """A sound row."""

    row: int
    source: str
    where: str
    record: R

    def reject(self, reason: str) -> Reject:
        """The same row, refused after all."""
        return Reject(row=self.row, source=self.source, where=self.where, id=self.record.id, reason=_short(reason))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources(Generic[R]):
    """What a job reads."""

    paths: Sequence[Path]
    parse: Parse[R]
    needed: Sequence[str]
    """Columns without which no row of a table could be sound."""
    tree_of_skill_md: bool = False

    def check(self) -> None:
        """Refuse what no run could read: CatalogueError for a missing source, or a table without a needed column."""
        for path in self.paths:
            for table, columns in column_names(path, tree_of_skill_md=self.tree_of_skill_md).items():
                if missing := [name for name in self.needed if name not in columns]:
                    raise CatalogueError(
                        f"Parquet file `{table}`",
                        got=f"columns {', '.join(columns)}",
                        wanted=f"also {', '.join(missing)}",
                        fix="Rename or add the column, and run the command again; nothing was scored.",
                    )

    def count(self) -> int:
        """How many rows there are, faulty ones included."""
        return sum(count_rows(path, tree_of_skill_md=self.tree_of_skill_md) for path in self.paths)

    def __iter__(self) -> Iterator[Item[R] | Reject]:
        """All rows in the order of the sources. Of two with one id the first is sound."""
        row = 0
        with closing(_SeenIds()) as seen:
            for path in self.paths:
                for where, named, found in self._rows(path):
                    fault = found if isinstance(found, str) else _fault_of_id(found, seen, where)
                    if isinstance(found, str) or fault is not None:
                        known = None if named is None else _short(named)
                        yield Reject(row=row, source=str(path), where=where, id=known, reason=_short(fault or ""))
                    else:
                        yield Item(row=row, source=str(path), where=where, record=found)
                    row += 1

    def _rows(self, path: Path) -> Iterator[tuple[str, str | None, R | str]]:
        """Where, the id if there is one, and the record or what is wrong."""
        faults = _Pending(path)
        for where, row in read_rows(path, faults, tree_of_skill_md=self.tree_of_skill_md):
            yield from faults.of_lines()  # before this one
            record = self.parse(where, row, faults)
            if record is None:
                named = row.get("id")
                yield where, None if named is None else str(named), "; ".join(what for _, what in faults.drain())
            else:
                yield where, record.id, record
        yield from faults.of_lines()


@dataclass
class _Pending(Faults):
    """Faults that are handed on instead of collected."""

    pending: list[tuple[str, str]] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        self.pending.append((where, what))

    def drain(self) -> list[tuple[str, str]]:
        """Those since the last time."""
        drained, self.pending = self.pending, []
        return drained

    def of_lines(self) -> Iterator[tuple[str, None, str]]:
        """The same, of lines that are no rows."""
        for where, what in self.drain():
            yield where, None, what


class _SeenIds:
    """Ids and where they stand, in a temporary file: a set of millions of them would not be constant memory."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("", isolation_level=None)  # no name: SQLite removes it when it is closed
        for line in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA cache_size = -8192",
            "CREATE TABLE seen (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID",
            "BEGIN",
        ):
            self._table.execute(line)

    def first(self, item_id: str, where: str) -> str | None:
        """Where the id stood before; None, and it is noted, if nowhere."""
        try:
            if self._table.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (item_id, where)).rowcount:
                return None
        except sqlite3.Error as error:
            raise OutputError(
                "temporary table of ids",
                got=str(error),
                wanted="room in the folder for temporary files",
                fix="Free space there, or name another folder in SQLITE_TMPDIR, and run the command again.",
            ) from error
        (place,) = self._table.execute("SELECT place FROM seen WHERE id = ?", (item_id,)).fetchone()
        return str(place)

    def close(self) -> None:
        """Forget them."""
        self._table.close()


def _fault_of_id(record: Skill | Query | Pair, seen: _SeenIds, where: str) -> str | None:
    if record.id is None:
        return None
    if mend(record.id) != record.id:
        return f"has an `id` with half a surrogate pair: {record.id!r}"
    place = seen.first(record.id, where)
    return None if place is None else f"repeats the id `{record.id}` of {place}"


def _short(reason: str) -> str:
    return mend(reason if len(reason) <= _MOST_REASON_CHARS else reason[:_MOST_REASON_CHARS] + " …")
