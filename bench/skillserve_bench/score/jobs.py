"""One small job of each kind that a repository allows, to be killed again and again."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from skillserve.records import Skill
from skillserve.settings import IndexSettings
from skillserve.skillfile import read_queries, split_file
from skillserve_client import build_bundle
from skillserve_client.wire import Inference

__all__ = ["Kind", "Victim", "spread", "victims"]

T = TypeVar("T")

Kind = Literal["embed", "rank", "pairs"]

_BUNDLE_SKILLS = 500
_MOST_REQUESTS = 200
_PAIRS_OF_A_REQUEST = 5
"""Enough for tens of shards, each of them seconds of work at most, whatever the size of the catalogue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A job of one kind."""

    kind: Kind
    source: Path
    num_rows: int
    """Of the source."""
    options: tuple[str, ...]
    """Of its command, beyond those that all kinds have."""

    def command(self, out: Path, *, num_shards: int) -> list[str]:
        """It in a process of its own, computing there, in about so many shards."""
        shard_rows = max(1, self.num_rows // num_shards)
        return [
            *(sys.executable, "-m", "skillserve", "score", self.kind, str(self.source), "--out", str(out), "--json"),
            *("--engine", "direct", "--shard-rows", str(shard_rows), *self.options),
        ]


def victims(
    repository: Path,
    catalogue: Path,
    skills: Sequence[Skill],
    data: Path | None,
    inference: Inference,
    scratch: Path,
) -> tuple[list[Victim], dict[Kind, str]]:
    """The jobs that can be done with these skills of a catalogue, and of the other kinds why not.

    With requests of `data`'s test split a bundle of some skills is built once. Raises CatalogueError, RepositoryError,
    ServerError, BundleError.
    """
    models = ("--models", str(repository))
    found = [Victim(kind="embed", source=catalogue, num_rows=len(skills), options=models)]
    if data is None:
        return found, {"rank": "no requests, since --data was not given", "pairs": "no requests, as for rank"}
    queries = spread(read_queries(split_file(data, "queries", "test")), _MOST_REQUESTS)
    few = spread(skills, _BUNDLE_SKILLS)
    bundles = scratch / "bundles"
    manifest = build_bundle(
        _written(scratch / "skills.jsonl", [asdict(skill) for skill in few]),
        inference,
        index=IndexSettings(bundles=bundles, models=repository),
    ).manifest
    searched = (*models, "--bundles", str(bundles))
    requests = [{"id": query.id, "query": query.text} for query in queries]
    source = _written(scratch / "requests.jsonl", requests)
    found.append(Victim(kind="rank", source=source, num_rows=len(requests), options=searched))
    if "reranker" not in manifest.models:
        return found, {"pairs": "the repository has no reranker"}
    pairs = [
        {"query": query.text, "skill_id": few[(i * _PAIRS_OF_A_REQUEST + k) % len(few)].id}
        for i, query in enumerate(queries)
        for k in range(_PAIRS_OF_A_REQUEST)
    ]
    source = _written(scratch / "pairs.jsonl", pairs)
    found.append(Victim(kind="pairs", source=source, num_rows=len(pairs), options=searched))
    return found, {}


def spread(things: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly spread, in their order."""
    num = min(most, len(things))
    return [things[i * len(things) // num] for i in range(num)]


def _written(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
