"""Test collections: requests, the skills they are searched among, and which of them fit.

Read from a folder in SkillRet's layout or from files, and checked: what is measured on judgements that name unknown
skills or requests means nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from skillserve.errors import CatalogueError
from skillserve.records import Qrels, Query, Skill
from skillserve.rows import Faults
from skillserve.skillfile import read_qrels, read_queries, read_skills, split_file

__all__ = ["Collection", "Pool", "Split", "read_collection", "read_split"]

Split = Literal["test", "train"]
Pool = Literal["split", "union"]
_SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What systems are measured on."""

    queries: Sequence[Query]
    """Those with a gold."""
    skills: Sequence[Skill]
    qrels: Qrels
    """Of these queries."""
    num_dropped: int
    """Queries that were left out because no skill fits them."""

    @property
    def num_golds(self) -> int:
        """Pairs of a query and a skill that fits it."""
        return sum(len(self.golds(query)) for query in self.queries)

    def golds(self, query: Query) -> list[str]:
        """Ids of the skills that fit a query."""
        return [skill for skill, relevance in self.qrels[query.id].items() if relevance > 0]

    def digest(self) -> str:
        """SHA-256 over queries, judgements and skills, in an order of its own: two files of the same rows agree."""
        rows = [
            *sorted([query.id, query.text, sorted(self.qrels[query.id].items())] for query in self.queries),
            *(asdict(skill) for skill in sorted(self.skills, key=lambda skill: skill.id)),
        ]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def read_split(data: Path, split: Split, *, pool: Pool = "split") -> Collection:
    """One split of a folder in SkillRet's layout; `pool="union"` searches the skills of all splits together."""
    files = [split_file(data, "skills", name) for name in (_SPLITS if pool == "union" else (split,))]
    return read_collection(split_file(data, "queries", split), split_file(data, "qrels", split), files)


def read_collection(queries: Path, qrels: Path | None, skills: Sequence[Path]) -> Collection:
    """A collection out of files; without `qrels`, the requests' own `skill_ids` are the judgements.

    Raises CatalogueError for faulty lines, for judgements that name unknown ids (all of them), for a skill that is in
    two files, and if no request has a fitting skill.
    """
    requests = read_queries(queries)
    judged = read_qrels(qrels) if qrels else {query.id: dict.fromkeys(query.skill_ids, 1) for query in requests}
    read = [skill for file in skills for skill in read_skills(file)]
    _check(qrels or queries, requests, judged, read)
    kept = [query for query in requests if any(relevance > 0 for relevance in judged.get(query.id, {}).values())]
    if not kept:
        raise CatalogueError(
            f"`{qrels or queries}`",
            got=f"{len(requests)} requests, none of them with a fitting skill",
            wanted="`skill_ids` with the requests, or judgements in a file of their own",
            fix="Name the judgements: --qrels FILE",
        )
    return Collection(
        queries=kept,
        skills=read,
        qrels={query.id: judged[query.id] for query in kept},
        num_dropped=len(requests) - len(kept),
    )


def _check(source: Path, queries: Sequence[Query], qrels: Qrels, skills: Sequence[Skill]) -> None:
    faults = Faults(source)
    known = {skill.id for skill in skills}
    asked = {query.id for query in queries}
    for query, relevance in qrels.items():
        if query not in asked:
            faults.add(f"request `{query}`", "is judged, but is none of the requests")
        for skill in relevance:
            if skill not in known:
                faults.add(f"request `{query}`", f"names the unknown skill `{skill}`")
    if len(known) < len(skills):
        faults.add("skills", f"{len(skills) - len(known)} ids are in more than one file")
    faults.raise_if_any("judgements of these requests about these skills")
