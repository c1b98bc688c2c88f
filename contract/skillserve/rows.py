"""Rows of JSON Lines (also .gz), Parquet, and folders of SKILL.md, with all that is wrong with them.

A faulty row is noted and left out; whoever reads raises at the end, so that one run shows every fault.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import yaml

from skillserve.errors import CatalogueError, MissingExtraError

__all__ = ["ENDINGS", "Faults", "Row", "column_names", "count_rows", "read_rows"]

Row = Mapping[str, Any]

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
"""Of the files that hold rows."""

_MOST_FAULTS_SHOWN = 20

_MOST_LINE_BYTES = 64 << 20
"""Longest line of JSON, room for the longest text with every character escaped: a file without line breaks would be
read into memory whole."""

_MOST_BUFFER_BYTES = 1 << 20
"""Of a column of a Parquet file."""

_ROWS_AT_ONCE = 256
"""Rows of a Parquet file that are in memory together."""


@dataclass
class Faults:
    """Collects what is wrong with a source."""

    source: Path
    found: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        """Note a fault of one place."""
        self.found.append(f"{where}: {what}")

    def raise_if_any(self, wanted: str) -> None:
        """CatalogueError with the first faults and the number of all."""
        if not self.found:
            return
        shown = "; ".join(self.found[:_MOST_FAULTS_SHOWN])
        more = len(self.found) - _MOST_FAULTS_SHOWN
        raise CatalogueError(
            f"`{self.source}`",
            got=f"{len(self.found)} fault(s): {shown}" + (f"; and {more} more" if more > 0 else ""),
            wanted=wanted,
            fix="Mend these lines and run the command again; nothing was changed.",
        )


def read_rows(source: Path, faults: Faults, *, tree_of_skill_md: bool = False) -> Iterator[tuple[str, Row]]:
    """(where, row) for every sound row; with `tree_of_skill_md` also of a SKILL.md or of a folder."""
    root, documents, files = _found(source, tree_of_skill_md=tree_of_skill_md)
    if documents:
        yield from _skill_documents(root, documents, faults)
    for path in files:
        yield from _table(path, faults)
    if not documents and not files:
        faults.add(str(source), "holds no SKILL.md, .jsonl, .jsonl.gz or .parquet")


def count_rows(source: Path, *, tree_of_skill_md: bool = False) -> int:
    """How many rows `read_rows` would see, faulty ones included, without reading what is in them.

    A file that cannot be read counts as what could be read of it.
    """
    _, documents, files = _found(source, tree_of_skill_md=tree_of_skill_md)
    return len(documents) + sum(_count(path) for path in files)


def column_names(source: Path, *, tree_of_skill_md: bool = False) -> dict[Path, list[str]]:
    """The columns of each Parquet file that `read_rows` would read; one that is none has no entry."""
    found = {}
    for path in _found(source, tree_of_skill_md=tree_of_skill_md)[2]:
        if path.suffix == ".parquet":
            pa, pq = _arrow(path)
            with suppress(OSError, pa.ArrowException), path.open("rb") as file:
                found[path] = list(pq.ParquetFile(file).schema_arrow.names)
    return found


def _found(source: Path, *, tree_of_skill_md: bool) -> tuple[Path, list[Path], list[Path]]:
    """The folder that documents are named from, the SKILL.md files, and the tables; CatalogueError for no source."""
    if source.is_dir() and tree_of_skill_md:
        files = sorted(path for path in source.iterdir() if path.name.endswith(ENDINGS))
        return source, sorted(source.rglob("SKILL.md")), files
    if source.is_file() and source.name == "SKILL.md" and tree_of_skill_md:
        return source.parent, [source], []
    if source.is_file():
        return source.parent, [], [source]
    raise CatalogueError(
        f"`{source}`",
        got="no such file or folder",
        wanted="JSON Lines, Parquet or a folder of SKILL.md",
        fix="Check the path.",
    )


def _count(path: Path) -> int:
    number = 0
    if path.suffix == ".parquet":
        pa, pq = _arrow(path)
        with suppress(OSError, pa.ArrowException), path.open("rb") as file:
            number = int(pq.ParquetFile(file).metadata.num_rows)
        return number
    with suppress(OSError, EOFError), _opened(path) as file:
        for line in _lines(file):
            number += line is None or bool(line.strip())
    return number


def _opened(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Every line; None for one that is too long, of which only a piece is in memory at a time."""
    while line := file.readline(_MOST_LINE_BYTES):
        if len(line) < _MOST_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while piece := file.readline(_MOST_LINE_BYTES):
            if piece.endswith(b"\n"):
                break
        yield None


def _table(path: Path, faults: Faults) -> Iterator[tuple[str, Row]]:
    if path.suffix == ".parquet":
        yield from _parquet(path, faults)
        return
    try:
        with _opened(path) as file:
            for number, line in enumerate(_lines(file), 1):
                if line is None:
                    faults.add(f"{path.name}:{number}", f"is a line of more than {_MOST_LINE_BYTES:,} bytes")
                elif line.strip():
                    yield from _json_line(f"{path.name}:{number}", line, faults)
    except (OSError, EOFError) as error:
        faults.add(path.name, f"cannot be read: {error}")


def _json_line(where: str, line: bytes, faults: Faults) -> Iterator[tuple[str, Row]]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        faults.add(where, f"is not UTF-8 (byte {error.start}: 0x{line[error.start]:02x})")
    except json.JSONDecodeError as error:
        faults.add(where, f"is no JSON ({error.msg} at column {error.colno})")
    except (RecursionError, ValueError) as error:  # nested without end, or a number of thousands of digits
        faults.add(where, f"is no JSON that can be read ({error})")
    else:
        if isinstance(row, dict):
            yield where, row
        else:
            faults.add(where, "is no JSON object")


def _arrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Parquet file `{path}`",
            got="no pyarrow",
            wanted="the client or the training extra",
            fix="Install it: pip install 'skillserve[client]'",
        ) from error
    return pa, pq


def _parquet(path: Path, faults: Faults) -> Iterator[tuple[str, Row]]:
    pa, pq = _arrow(path)
    number = 0
    try:
        # Opened by Python and not by Arrow: what is opened is then seen by audit hooks.
        with path.open("rb") as file:
            # Without a buffer of its own, Arrow reads a row group whole before it gives the first row.
            table = pq.ParquetFile(file, buffer_size=_MOST_BUFFER_BYTES, pre_buffer=False)
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name}:{number}", row
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
        faults.add(path.name, f"is no Parquet file that can be read beyond row {number}: {error}")


def _skill_documents(root: Path, paths: Sequence[Path], faults: Faults) -> Iterator[tuple[str, Row]]:
    """A SKILL.md is YAML front matter (name, description, …) between two `---` lines, then the body."""
    for path in paths:
        where = str(path.relative_to(root))
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            faults.add(where, f"is not UTF-8 (byte {error.start})")
            continue
        except OSError as error:
            faults.add(where, f"cannot be read: {error}")
            continue
        head, separator, body = text.removeprefix("\ufeff").partition("\n---")
        if not head.startswith("---") or not separator:
            faults.add(where, "has no front matter between `---` lines")
            continue
        try:
            front = yaml.safe_load(head.removeprefix("---"))
        except yaml.YAMLError as error:
            faults.add(where, f"has front matter that is no YAML: {str(error).splitlines()[0]}")
            continue
        if not isinstance(front, dict):
            faults.add(where, "has front matter without keys")
            continue
        row = {str(key): value for key, value in front.items()}
        identity = str(path.parent.relative_to(root))
        yield (
            where,
            {
                "id": identity if identity != "." else path.parent.resolve().name,
                **row,
                "body": body.lstrip("-").strip(),
            },
        )
