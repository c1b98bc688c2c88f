"""Training data in SkillRet's layout, and the hold-out that models are chosen on.

Only the train split is opened here. The test split has no reader in this room, so no number of training can
come from it.
"""

from __future__ import annotations

import gzip
import hashlib
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from skillserve.errors import CatalogueError
from skillserve.records import Qrels, Query, Skill
from skillserve.skillfile import read_qrels, read_queries, read_skills, split_file

__all__ = ["TrainingData", "hold_out", "read_training_data"]

_SPLIT = "train"
_CUT_SEED = 0
_MOST_FAULTS_SHOWN = 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Skills, requests, and which skills fit which request."""

    skills: tuple[Skill, ...]
    queries: tuple[Query, ...]
    """Each with at least one gold."""
    golds: Mapping[str, frozenset[str]]
    """Query id → ids of the skills that fit it."""
    digest: str
    """SHA-256 over the content of the files that were read."""

    @property
    def qrels(self) -> Qrels:
        """The golds as relevance judgements."""
        return {query.id: dict.fromkeys(self.golds[query.id], 1) for query in self.queries}


def read_training_data(folder: Path) -> TrainingData:
    """Read `{skills,queries,qrels}/train` of a folder, plain or gzipped. CatalogueError lists all that is wrong."""
    files = [split_file(folder, part, _SPLIT) for part in ("skills", "queries", "qrels")]
    skills, queries, qrels = read_skills(files[0]), read_queries(files[1]), read_qrels(files[2])
    golds = {query: frozenset(skill for skill, rel in judged.items() if rel > 0) for query, judged in qrels.items()}
    faults = _faults(skills, queries, golds)
    if faults:
        more = len(faults) - _MOST_FAULTS_SHOWN
        raise CatalogueError(
            f"training data `{folder}`",
            got=f"{len(faults)} fault(s): "
            + "; ".join(faults[:_MOST_FAULTS_SHOWN])
            + (f"; and {more} more" if more > 0 else ""),
            wanted="qrels that name only skills and requests of the train split, and a fitting skill for every request",
            fix="Mend these lines and run the command again; nothing was written.",
        )
    return TrainingData(tuple(skills), tuple(queries), golds, _digest(files))


def hold_out(data: TrainingData, *, share: float) -> tuple[TrainingData, TrainingData]:
    """Cut off about `share` of the skills with their requests: (to train on, to choose on). May raise CatalogueError.

    No gold of a held-out request is in the training part, neither as a skill nor as a gold. Chains of requests
    that share golds are held out whole as long as the share allows; a request with golds on both sides belongs
    to neither part. The held-out part keeps ALL skills as its corpus: serving mixes known and new skills too.
    The cut depends on data and share alone, not on a run's seed, and a smaller share is a part of a larger one:
    so a reranker can be chosen on skills that its embedder has not seen either.
    """
    queries_of: defaultdict[str, list[str]] = defaultdict(list)
    for query in data.queries:
        for skill in sorted(data.golds[query.id]):
            queries_of[skill].append(query.id)
    quota = share * len(queries_of)
    order = [query.id for query in data.queries]
    random.Random(_CUT_SEED).shuffle(order)  # noqa: S311 -- reproducible, not secret
    held: set[str] = set()
    for first in order:
        chain = [first]
        while chain and len(held) < quota:
            for skill in sorted(data.golds[chain.pop()] - held):
                held.add(skill)
                chain.extend(queries_of[skill])
    to_train = replace(
        data,
        skills=tuple(skill for skill in data.skills if skill.id not in held),
        queries=tuple(query for query in data.queries if data.golds[query.id].isdisjoint(held)),
    )
    if not to_train.queries or len(to_train.skills) < 2:
        raise CatalogueError(
            "hold-out",
            got=f"a share of {share:g} of {len(queries_of)} skills, which leaves too little to train on",
            wanted="requests and at least two skills to train on",
            fix="Bring more data, or train on all of it: --holdout-share 0",
        )
    to_choose = replace(data, queries=tuple(query for query in data.queries if data.golds[query.id] <= held))
    return to_train, to_choose


def _faults(skills: list[Skill], queries: list[Query], golds: Mapping[str, frozenset[str]]) -> list[str]:
    skill_ids, query_ids = {skill.id for skill in skills}, {query.id for query in queries}
    faults = [f"qrels name the unknown request `{query}`" for query in golds if query not in query_ids]
    for query, fitting in golds.items():
        faults += [f"qrels of `{query}` name the unknown skill `{skill}`" for skill in sorted(fitting - skill_ids)]
    faults += [f"request `{query.id}` has no fitting skill" for query in queries if not golds.get(query.id)]
    if not queries:
        faults.append("no requests")
    if len(skills) < 2:
        faults.append("fewer than two skills, so there is nothing to tell apart")
    return faults


def _digest(files: list[Path]) -> str:
    """SHA-256 over part names and uncompressed content, so that gzip's time stamp does not count."""
    digest = hashlib.sha256()
    for file in files:
        content = hashlib.sha256()
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            while chunk := lines.read(_CHUNK_BYTES):
                content.update(chunk)
        digest.update(f"{file.parent.name}:{content.hexdigest()}\n".encode())
    return digest.hexdigest()
