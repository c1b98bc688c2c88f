"""The one loader of training data: SkillRet's layout, from wherever `sources` finds it, checked as a whole.

Skills, requests and judgements are JSON Lines, gzipped or not, or Parquet; `skills/train` may be a tree of SKILL.md
instead. A text may be long, since models cut by tokens; beyond `skillfile.MOST_TEXT_BYTES` it is a fault.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from skillserve.errors import CatalogueError
from skillserve.records import Qrels, Query, Skill
from skillserve.rows import ENDINGS, Faults, read_rows
from skillserve.skillfile import Part, find_split, read_qrels, read_queries, read_skills, split_file
from skillserve_training.dataset import TrainingData
from skillserve_training.sides import faults_of_sides, text_digests_of_test_skills
from skillserve_training.sources import open_source

__all__ = ["read_none_requests", "read_training_data"]

T = TypeVar("T")

_SPLIT = "train"
_NONE = "train-none"
_PARTS: tuple[Part, ...] = ("skills", "queries", "qrels")
_MOST_FAULTS_SHOWN = 20
_CHUNK_BYTES = 1 << 20


def read_training_data(spec: str | Path) -> TrainingData:
    """Read the train split of a folder, or of a dataset on the hub as `hub:org/name@revision`.

    CatalogueError lists everything that is wrong with it; ConfigError says why a dataset cannot be had.
    """
    source = open_source(spec)
    faults: list[str] = []
    skills = _attempt(lambda: read_skills(split_file(source.folder, "skills", _SPLIT)), faults)
    queries = _attempt(lambda: read_queries(split_file(source.folder, "queries", _SPLIT)), faults)
    qrels = _attempt(lambda: read_qrels(split_file(source.folder, "qrels", _SPLIT)), faults)
    test_skills = _attempt(lambda: text_digests_of_test_skills(source.folder), faults)
    if skills is not None:
        faults += _faults_of_skills(skills) + faults_of_sides(skills, test_skills or {})
    golds = _golds(qrels or {})
    if skills is not None and queries is not None and qrels is not None:
        if not any(golds.get(query.id) for query in queries):
            faults.insert(0, _no_golds(queries, golds))
        else:
            faults += _faults_of_golds(skills, queries, golds)
    if faults:
        more = len(faults) - _MOST_FAULTS_SHOWN
        raise CatalogueError(
            f"training data `{spec}`",
            got=f"{len(faults)} fault(s): "
            + "; ".join(faults[:_MOST_FAULTS_SHOWN])
            + (f"; and {more} more" if more > 0 else ""),
            wanted="skills that the test split has not, a fitting skill for every request, qrels that name only these",
            fix="Mend these lines and run the command again; nothing was written.",
        )
    digest = _digest(split_file(source.folder, part, _SPLIT) for part in _PARTS)
    return TrainingData(tuple(skills or ()), tuple(queries or ()), golds, digest, source.origin)


def read_none_requests(spec: str | Path) -> tuple[Query, ...]:
    """The requests that nothing fits, `queries/train-none`; none if the data have no such file."""
    file = find_split(open_source(spec).folder, "queries", _NONE)
    if file is None:
        return ()
    queries = read_queries(file)
    faults = Faults(file)
    for query in queries:
        if query.skill_ids:
            faults.add(f"`{query.id}`", f"has fitting skills: {', '.join(query.skill_ids)}")
    faults.raise_if_any("requests that no skill fits")
    return tuple(queries)


def _attempt(read: Callable[[], T], faults: list[str]) -> T | None:
    try:
        return read()
    except CatalogueError as error:
        faults.append(f"{error.subject}: {error.got}")
        return None


def _golds(qrels: Qrels) -> dict[str, frozenset[str]]:
    return {query: frozenset(skill for skill, rel in judged.items() if rel > 0) for query, judged in qrels.items()}


def _faults_of_skills(skills: Sequence[Skill]) -> list[str]:
    faults = [
        f"skill `{skill.id}` has neither description nor body"
        for skill in skills
        if not skill.description.strip() and not skill.body.strip()
    ]
    if len(skills) < 2:
        faults.append("fewer than two skills, so there is nothing to tell apart")
    return faults


def _faults_of_golds(
    skills: Sequence[Skill], queries: Sequence[Query], golds: Mapping[str, frozenset[str]]
) -> list[str]:
    skill_ids, query_ids = {skill.id for skill in skills}, {query.id for query in queries}
    faults = [f"qrels name the unknown request `{query}`" for query in golds if query not in query_ids]
    for query, fitting in golds.items():
        faults += [f"qrels of `{query}` name the unknown skill `{skill}`" for skill in sorted(fitting - skill_ids)]
    return faults + [f"request `{query.id}` has no fitting skill" for query in queries if not golds.get(query.id)]


def _no_golds(queries: Sequence[Query], golds: Mapping[str, frozenset[str]]) -> str:
    """One fault instead of one for every request: the files do not belong together, or judge nothing as fitting."""
    judged = next(iter(golds), None)
    said = f"they judge such as `{judged}`, the requests are such as `{queries[0].id}`" if judged else "they are empty"
    return f"none of the {len(queries):,} requests has a fitting skill in the qrels: {said}"


def _digest(sources: Iterable[Path]) -> str:
    """SHA-256 over the names and the content of the parts.

    Of JSON Lines it is the text that counts, not gzip's form of it; of Parquet the rows, as JSON with sorted keys,
    not how they are compressed or grouped; of a tree every file in it, with its path.
    """
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source.parent.name}:{_content_digest(source)}\n".encode())
    return digest.hexdigest()


def _content_digest(source: Path) -> str:
    content = hashlib.sha256()
    if source.is_dir():
        files = sorted({*source.rglob("SKILL.md"), *(path for path in source.iterdir() if path.name.endswith(ENDINGS))})
        for path in files:
            content.update(f"{path.relative_to(source)}:{_content_digest(path)}\n".encode())
    elif source.suffix == ".parquet":
        for _, row in read_rows(source, Faults(source)):
            line = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
            content.update(line.encode("utf-8", "surrogatepass") + b"\n")
    else:
        with gzip.open(source) if source.suffix == ".gz" else source.open("rb") as lines:
            while chunk := lines.read(_CHUNK_BYTES):
                content.update(chunk)
    return content.hexdigest()
