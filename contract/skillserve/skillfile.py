"""Reading skills and requests: JSON Lines (also .gz), Parquet, and folders of SKILL.md.

Field names follow the SkillRet dataset. Every faulty line of every file is reported at once, with its
number; nothing is returned unless everything is sound.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from skillserve.errors import CatalogueError, MissingExtraError
from skillserve.records import Qrels, Query, Skill

__all__ = ["read_qrels", "read_queries", "read_skills", "split_file"]

_SKILL_FIELDS = {"id", "name", "description", "body", "namespace"}
_MOST_PROBLEMS_SHOWN = 20
_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")


@dataclass
class _Problems:
    """Collects faults, so that one run shows them all."""

    source: Path
    found: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        self.found.append(f"{where}: {what}")

    def raise_if_any(self, wanted: str) -> None:
        if not self.found:
            return
        shown = "; ".join(self.found[:_MOST_PROBLEMS_SHOWN])
        more = len(self.found) - _MOST_PROBLEMS_SHOWN
        raise CatalogueError(
            f"`{self.source}`",
            got=f"{len(self.found)} fault(s): {shown}" + (f"; and {more} more" if more > 0 else ""),
            wanted=wanted,
            fix="Mend these lines and run the command again; nothing was changed.",
        )


def read_skills(source: Path) -> list[Skill]:
    """All skills of a JSONL(.gz) or Parquet file, of a folder with such files, or of a tree of SKILL.md files."""
    problems = _Problems(source)
    skills: list[Skill] = []
    seen: dict[str, str] = {}
    for where, row in _rows(source, problems, tree_of_skill_md=True):
        skill = _skill(where, row, problems)
        if skill is None:
            continue
        if skill.id in seen:
            problems.add(where, f"repeats the id `{skill.id}` of {seen[skill.id]}")
        else:
            seen[skill.id] = where
            skills.append(skill)
    if not skills and not problems.found:
        problems.add(str(source), "no skills")
    problems.raise_if_any("one skill a line, each with a unique `id` and a `name`")
    return skills


def read_queries(source: Path) -> list[Query]:
    """All requests of a JSONL(.gz) or Parquet file: `id`, `query`, and optionally `skill_ids`."""
    problems = _Problems(source)
    queries: list[Query] = []
    seen: dict[str, str] = {}
    for where, row in _rows(source, problems):
        query_id, text = _identity(row.get("id")), row.get("query")
        golds = _identities(row.get("skill_ids"))
        if query_id is None:
            problems.add(where, "lacks an `id`")
        elif not isinstance(text, str) or not text.strip():
            problems.add(where, "lacks a `query`")
        elif golds is None:
            problems.add(where, f"has `skill_ids` that are no list of ids: {row['skill_ids']!r}")
        elif query_id in seen:
            problems.add(where, f"repeats the id `{query_id}` of {seen[query_id]}")
        else:
            seen[query_id] = where
            queries.append(Query(id=query_id, text=text, skill_ids=golds))
    if not queries and not problems.found:
        problems.add(str(source), "no requests")
    problems.raise_if_any("one request a line, each with a unique `id` and a `query`")
    return queries


def read_qrels(source: Path) -> Qrels:
    """Relevance judgements of a JSONL(.gz) or Parquet file: `query_id`, `skill_id`, `relevance`."""
    problems = _Problems(source)
    qrels: dict[str, dict[str, int]] = {}
    for where, row in _rows(source, problems):
        query_id, skill_id = _identity(row.get("query_id")), _identity(row.get("skill_id"))
        try:
            relevance = int(row["relevance"])
        except (KeyError, TypeError, ValueError):
            relevance = None
        if query_id is None or skill_id is None or relevance is None:
            problems.add(where, "needs `query_id`, `skill_id` and an integer `relevance`")
        else:
            qrels.setdefault(query_id, {})[skill_id] = relevance
    problems.raise_if_any("one judgement a line")
    return qrels


def split_file(data: Path, part: Literal["skills", "queries", "qrels"], split: str) -> Path:
    """One file of a folder in SkillRet's layout: `data/part/split` with the ending .jsonl, .jsonl.gz or .parquet."""
    for ending in _ENDINGS:
        path = data / part / f"{split}{ending}"
        if path.is_file():
            return path
    raise CatalogueError(
        f"data folder `{data}`",
        got=f"no {part}/{split} file",
        wanted=f"{part}/{split} as one of {', '.join(_ENDINGS)}",
        fix="Name a folder in SkillRet's layout, such as examples/sample.",
    )


def _skill(where: str, row: Mapping[str, Any], problems: _Problems) -> Skill | None:
    name = row.get("name")
    if not isinstance(name, str) or not name.strip():
        problems.add(where, "lacks a `name`")
        return None
    given = row.get("id")
    skill_id = _identity(name if given is None or given == "" else given)
    if skill_id is None:
        problems.add(where, f"has an `id` that is no text: {given!r}")
        return None
    texts: dict[str, str] = {}
    for key in ("description", "body", "namespace"):
        value = row.get(key)
        if value is None:
            value = ""
        if not isinstance(value, str):
            problems.add(where, f"has a `{key}` that is no text")
            return None
        texts[key] = value
    texts["body"] = texts["body"] or str(row.get("skill_md") or "")
    extra = {
        key: str(value) for key, value in row.items() if key not in _SKILL_FIELDS | {"skill_md"} and value is not None
    }
    return Skill(id=skill_id, name=name, fields=extra, **texts)


def _identity(value: object) -> str | None:
    """An id as text: a whole number is taken too, since YAML and tables make numbers of digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None


def _identities(values: object) -> tuple[str, ...] | None:
    """A list of ids, empty if absent; None if it is anything else."""
    if values is None:
        return ()
    found = [_identity(value) for value in values] if isinstance(values, list) else [None]
    ids = tuple(each for each in found if each is not None)
    return ids if len(ids) == len(found) else None


def _rows(
    source: Path, problems: _Problems, *, tree_of_skill_md: bool = False
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if source.is_dir() and tree_of_skill_md:
        documents = sorted(source.rglob("SKILL.md"))
        files = sorted(path for path in source.iterdir() if _is_table(path))
        if documents:
            yield from _skill_documents(source, documents, problems)
        for path in files:
            yield from _table(path, problems)
        if not documents and not files:
            problems.add(str(source), "holds no SKILL.md, .jsonl, .jsonl.gz or .parquet")
    elif source.is_file() and source.name == "SKILL.md" and tree_of_skill_md:
        yield from _skill_documents(source.parent, [source], problems)
    elif source.is_file():
        yield from _table(source, problems)
    else:
        raise CatalogueError(
            f"`{source}`",
            got="no such file or folder",
            wanted="JSON Lines, Parquet or a folder of SKILL.md",
            fix="Check the path.",
        )


def _is_table(path: Path) -> bool:
    return path.name.endswith(_ENDINGS)


def _table(path: Path, problems: _Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix == ".parquet":
        yield from _parquet(path, problems)
        return
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield from _json_line(f"{path.name}:{number}", line, problems)
    except (OSError, EOFError) as error:
        problems.add(path.name, f"cannot be read: {error}")


def _json_line(where: str, line: bytes, problems: _Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        problems.add(where, f"is not UTF-8 (byte {error.start}: 0x{line[error.start]:02x})")
    except json.JSONDecodeError as error:
        problems.add(where, f"is no JSON ({error.msg} at column {error.colno})")
    else:
        if isinstance(row, dict):
            yield where, row
        else:
            problems.add(where, "is no JSON object")


def _parquet(path: Path, problems: _Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Parquet file `{path}`",
            got="no pyarrow",
            wanted="the client extra",
            fix="Install it: pip install 'skillserve[client]'",
        ) from error
    try:
        table = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        problems.add(path.name, f"is no Parquet file: {error}")
        return
    number = 0
    for batch in table.iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"{path.name}:{number}", row


def _skill_documents(root: Path, paths: Sequence[Path], problems: _Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A SKILL.md is YAML front matter (name, description, …) between two `---` lines, then the body."""
    for path in paths:
        where = str(path.relative_to(root))
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            problems.add(where, f"is not UTF-8 (byte {error.start})")
            continue
        head, separator, body = text.removeprefix("\ufeff").partition("\n---")
        if not head.startswith("---") or not separator:
            problems.add(where, "has no front matter between `---` lines")
            continue
        try:
            front = yaml.safe_load(head.removeprefix("---"))
        except yaml.YAMLError as error:
            problems.add(where, f"has front matter that is no YAML: {str(error).splitlines()[0]}")
            continue
        if not isinstance(front, dict):
            problems.add(where, "has front matter without keys")
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
