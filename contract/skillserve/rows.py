"""Rows of JSON Lines (also .gz), Parquet, and folders of SKILL.md, with all that is wrong with them.

A faulty row is noted and left out; whoever reads raises at the end, so that one run shows every fault.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from skillserve.errors import CatalogueError, MissingExtraError

__all__ = ["ENDINGS", "Faults", "Row", "read_rows"]

Row = Mapping[str, Any]

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
"""Of the files that hold rows."""

_MOST_FAULTS_SHOWN = 20


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
    if source.is_dir() and tree_of_skill_md:
        documents = sorted(source.rglob("SKILL.md"))
        files = sorted(path for path in source.iterdir() if path.name.endswith(ENDINGS))
        if documents:
            yield from _skill_documents(source, documents, faults)
        for path in files:
            yield from _table(path, faults)
        if not documents and not files:
            faults.add(str(source), "holds no SKILL.md, .jsonl, .jsonl.gz or .parquet")
    elif source.is_file() and source.name == "SKILL.md" and tree_of_skill_md:
        yield from _skill_documents(source.parent, [source], faults)
    elif source.is_file():
        yield from _table(source, faults)
    else:
        raise CatalogueError(
            f"`{source}`",
            got="no such file or folder",
            wanted="JSON Lines, Parquet or a folder of SKILL.md",
            fix="Check the path.",
        )


def _table(path: Path, faults: Faults) -> Iterator[tuple[str, Row]]:
    if path.suffix == ".parquet":
        yield from _parquet(path, faults)
        return
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
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


def _parquet(path: Path, faults: Faults) -> Iterator[tuple[str, Row]]:
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
    number = 0
    try:
        # Opened by Python and not by Arrow: what is opened is then seen by audit hooks.
        with path.open("rb") as file:
            for batch in pq.ParquetFile(file).iter_batches():
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
