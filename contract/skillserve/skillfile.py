"""Reading skills and requests: JSON Lines (also .gz), Parquet, and folders of SKILL.md.

Field names follow the SkillRet dataset. Every faulty line of every file is reported at once, with its
number; nothing is returned unless everything is sound.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from skillserve.errors import CatalogueError
from skillserve.records import Pair, Qrels, Query, Skill
from skillserve.rows import ENDINGS, Faults, Row, read_rows

__all__ = [
    "MOST_TEXT_BYTES",
    "Part",
    "find_split",
    "pair_of",
    "query_of",
    "read_qrels",
    "read_queries",
    "read_skills",
    "skill_of",
    "split_file",
]

Part = Literal["skills", "queries", "qrels"]

MOST_TEXT_BYTES = 8 << 20
"""Longest text of a skill or request, as UTF-8: models read its first few thousand tokens, and more is no text."""

_SKILL_FIELDS = {"id", "name", "description", "body", "namespace", "skill_md"}


def read_skills(source: Path) -> list[Skill]:
    """All skills of a JSONL(.gz) or Parquet file, of a folder with such files, or of a tree of SKILL.md files."""
    faults = Faults(source)
    skills: list[Skill] = []
    seen: dict[str, str] = {}
    for where, row in read_rows(source, faults, tree_of_skill_md=True):
        skill = skill_of(where, row, faults)
        if skill is None:
            continue
        if skill.id in seen:
            faults.add(where, f"repeats the id `{skill.id}` of {seen[skill.id]}")
        else:
            seen[skill.id] = where
            skills.append(skill)
    if not skills and not faults.found:
        faults.add(str(source), "no skills")
    faults.raise_if_any("one skill a line, each with a unique `id` and a `name`")
    return skills


def read_queries(source: Path) -> list[Query]:
    """All requests of a JSONL(.gz) or Parquet file: `id`, `query`, and optionally `skill_ids`.

    SkillRet's training scripts meet requests that stand in several rows, each with some of the golds: rows of one
    id and one text are one request with all of them. One id with two texts is a fault.
    """
    faults = Faults(source)
    queries: dict[str, Query] = {}
    seen: dict[str, str] = {}
    for where, row in read_rows(source, faults):
        query = query_of(where, row, faults)
        if query is None:
            continue
        known = queries.setdefault(query.id, query)
        if known is query:
            seen[query.id] = where
        elif known.text == query.text:
            golds = tuple(dict.fromkeys((*known.skill_ids, *query.skill_ids)))
            queries[query.id] = replace(known, skill_ids=golds)
        else:
            faults.add(where, f"repeats the id `{query.id}` of {seen[query.id]} with another text")
    if not queries and not faults.found:
        faults.add(str(source), "no requests")
    faults.raise_if_any("one request a line, each with a unique `id` and a `query`")
    return list(queries.values())


def read_qrels(source: Path) -> Qrels:
    """Relevance judgements of a JSONL(.gz) or Parquet file: `query_id`, `skill_id`, `relevance`."""
    faults = Faults(source)
    qrels: dict[str, dict[str, int]] = {}
    for where, row in read_rows(source, faults):
        query_id, skill_id = _identity(row.get("query_id")), _identity(row.get("skill_id"))
        relevance = _relevance(row.get("relevance"))
        if query_id is None or skill_id is None or relevance is None:
            faults.add(where, "needs `query_id`, `skill_id` and an integer `relevance`")
        elif qrels.setdefault(query_id, {}).setdefault(skill_id, relevance) != relevance:
            faults.add(where, f"judges `{skill_id}` for `{query_id}` again, and differently")
    faults.raise_if_any("one judgement a line, each pair judged once")
    return qrels


def find_split(data: Path, part: Part, split: str) -> Path | None:
    """Where one part of a split stands in SkillRet's layout: `data/part/split` with a known ending; None if nowhere.

    Skills may also be a folder `data/skills/split`, a tree of SKILL.md. CatalogueError if two things stand there.
    """
    found = [path for ending in ENDINGS if (path := data / part / f"{split}{ending}").is_file()]
    if part == "skills" and (tree := data / part / split).is_dir():
        found.append(tree)
    if len(found) > 1:
        raise CatalogueError(
            f"data folder `{data}`",
            got=" and ".join(f"{part}/{path.name}" for path in found),
            wanted="one of them",
            fix="Remove or rename what is not meant.",
        )
    return found[0] if found else None


def split_file(data: Path, part: Part, split: str) -> Path:
    """As `find_split`, but CatalogueError if nothing stands there."""
    found = find_split(data, part, split)
    if found is None:
        tree = ", or a folder of SKILL.md" if part == "skills" else ""
        raise CatalogueError(
            f"data folder `{data}`",
            got=f"no {part}/{split} file",
            wanted=f"{part}/{split} as one of {', '.join(ENDINGS)}{tree}",
            fix="Name a folder in SkillRet's layout, such as examples/sample.",
        )
    return found


def query_of(where: str, row: Row, faults: Faults) -> Query | None:
    """The request of one row; None, and its fault noted, if it holds none."""
    query_id, text = _identity(row.get("id")), row.get("query")
    golds = _identities(row.get("skill_ids"))
    if query_id is None:
        faults.add(where, "lacks an `id`")
    elif not isinstance(text, str) or not text.strip():
        faults.add(where, "lacks a `query`")
    elif fault := _fault_of_text(text):
        faults.add(where, f"has a `query` {fault}")
    elif golds is None:
        faults.add(where, f"has `skill_ids` that are no list of ids: {row['skill_ids']!r}")
    else:
        return Query(id=query_id, text=text, skill_ids=golds)
    return None


def pair_of(where: str, row: Row, faults: Faults) -> Pair | None:
    """The pair of one row, `query` and `skill_id`, with or without an `id`; None, and its fault noted, if none."""
    text, skill_id, given = row.get("query"), _identity(row.get("skill_id")), row.get("id")
    pair_id = None if given is None or given == "" else _identity(given)
    if not isinstance(text, str) or not text.strip():
        faults.add(where, "lacks a `query`")
    elif fault := _fault_of_text(text):
        faults.add(where, f"has a `query` {fault}")
    elif skill_id is None:
        faults.add(where, "lacks a `skill_id`")
    elif pair_id is None and given is not None and given != "":
        faults.add(where, f"has an `id` that is no text: {given!r}")
    else:
        return Pair(id=pair_id, text=text, skill_id=skill_id)
    return None


def skill_of(where: str, row: Row, faults: Faults) -> Skill | None:
    """The skill of one row; None, and its faults noted, if it holds none."""
    name = row.get("name")
    if not isinstance(name, str) or not name.strip():
        faults.add(where, "lacks a `name`")
        return None
    given = row.get("id")
    skill_id = _identity(name if given is None or given == "" else given)
    if skill_id is None:
        faults.add(where, f"has an `id` that is no text: {given!r}")
        return None
    texts = {key: _text(where, row, key, faults) for key in ("name", "description", "body", "skill_md", "namespace")}
    if None in texts.values():
        return None
    # SkillRet has both, and its models read `skill_md`: the whole file, front matter included.
    body, skill_md = texts.pop("body"), texts.pop("skill_md")
    extra = {key: str(value) for key, value in row.items() if key not in _SKILL_FIELDS and value is not None}
    return Skill(
        id=skill_id,
        name=name,
        description=texts["description"] or "",
        body=(skill_md if (skill_md or "").strip() else body) or "",
        namespace=texts["namespace"] or "",
        fields=extra,
    )


def _text(where: str, row: Row, key: str, faults: Faults) -> str | None:
    """A text of a row, empty if absent; None, and a fault noted, if it is anything else."""
    value = row.get(key)
    if value is None:
        return ""
    fault = _fault_of_text(value) if isinstance(value, str) else "that is no text"
    if fault:
        faults.add(where, f"has a `{key}` {fault}")
        return None
    return str(value)


def _fault_of_text(text: str) -> str | None:
    num_bytes = len(text.encode("utf-8", "surrogatepass"))
    return f"of {num_bytes:,} bytes, more than {MOST_TEXT_BYTES:,}" if num_bytes > MOST_TEXT_BYTES else None


def _relevance(value: object) -> int | None:
    """A whole number, in whatever form tables keep it; None if it is anything else."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    try:
        return int(value) if isinstance(value, int | str) else None
    except ValueError:
        return None


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
