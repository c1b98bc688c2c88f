"""Run files: rankings in TREC's six columns, `query Q0 skill rank score tag`, read, written, and as a system.

As in trec_eval the score orders a ranking, not the rank that stands beside it.
"""

from __future__ import annotations

import errno
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skillserve.errors import CatalogueError, UsageError
from skillserve.metrics import ranked
from skillserve.publish import write_text
from skillserve.records import Query, Run, Skill
from skillserve.rows import Faults
from skillserve.settings import Settings

__all__ = ["RunFile", "by_rank", "open_run", "read_run", "require_writable", "run_lines", "write_run"]

TAG = "skillserve"
"""The sixth column of runs that we write."""

_COLUMNS = 6


def by_rank(ranking: Sequence[str]) -> dict[str, float]:
    """Scores that descend to 1 with the rank, for rankings whose own scores do not compare.

    >>> by_rank(["b", "a"])
    {'b': 2.0, 'a': 1.0}
    """
    return {skill: float(len(ranking) - place) for place, skill in enumerate(ranking)}


def run_lines(query: str, scores: Mapping[str, float]) -> Iterator[str]:
    """The lines of one ranking, best first; UsageError for an id with white space, which separates the columns."""
    for rank, skill in enumerate(ranked(scores), 1):
        for name, value in (("request", query), ("skill", skill)):
            if len(value.split()) != 1:
                raise UsageError(
                    f"id {value!r} of a {name}",
                    got="white space in it",
                    wanted="ids without white space, which separates the columns of a run",
                    fix="Use --json instead of --run-out, or change the id.",
                )
        # Nine digits bring every float32 back as it was.
        yield f"{query} Q0 {skill} {rank} {scores[skill]:.9g} {TAG}\n"


def write_run(path: Path, run: Run) -> None:
    """Write a run, whole or not at all; UsageError if an id or the disk does not allow it."""
    content = "".join(line for query, scores in run.items() for line in run_lines(query, scores))
    try:
        write_text(path, content)
    except OSError as error:
        raise _unwritable(path, error) from error


def require_writable(path: Path, *, option: str = "--run-out") -> None:
    """Find out before long work whether a file can be written; nothing remains of the attempt. Raises UsageError."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error, option) from error


def read_run(path: Path) -> Run:
    """Read a run; CatalogueError lists every faulty line."""
    faults = Faults(path)
    run: dict[str, dict[str, float]] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        faults.add(path.name, f"cannot be read: {error}")
        lines = []
    for number, line in enumerate(lines, 1):
        columns = line.split()
        if not columns:
            continue
        if len(columns) != _COLUMNS:
            faults.add(f"{path.name}:{number}", f"has {len(columns)} columns")
            continue
        query, _, skill, _, score, _ = columns
        if (value := _finite(score)) is None:
            faults.add(f"{path.name}:{number}", f"has the score {score!r}")
        elif skill in run.setdefault(query, {}):
            faults.add(f"{path.name}:{number}", f"ranks `{skill}` again for `{query}`")
        else:
            run[query][skill] = value
    if not run and not faults.found:
        faults.add(path.name, "no rankings")
    faults.raise_if_any("`query Q0 skill rank score tag`, each skill once a query, scores finite")
    return run


@dataclass(frozen=True, slots=True)
class RunFile:
    """A `skillserve.systems.System` that has ranked already."""

    name: str
    run: Run
    digests: Mapping[str, str] = field(default_factory=dict)

    def rank(self, queries: Sequence[Query], skills: Sequence[Skill], *, depth: int) -> Run:
        """The run's rankings of these queries, cut at `depth`; queries that it lacks are left out.

        Raises CatalogueError if it ranks skills that are not among `skills`: in another pool, figures mean
        something else.
        """
        own = {query.id: self.run[query.id] for query in queries if query.id in self.run}
        known = {skill.id for skill in skills}
        if foreign := sorted({skill for scores in own.values() for skill in scores} - known):
            raise CatalogueError(
                f"system `{self.name}`",
                got=f"{len(foreign)} ranked skills that are not evaluated, such as {', '.join(foreign[:5])}",
                wanted=f"a run over the same {len(known)} skills",
                fix="Evaluate the pool that the run was made with: --pool union, or --skills FILE",
            )
        return {query: {skill: scores[skill] for skill in ranked(scores)[:depth]} for query, scores in own.items()}


def open_run(file: str, _settings: Settings) -> RunFile:
    """The `skillserve.systems.Opener` of `run:FILE`; raises CatalogueError."""
    return RunFile(f"run:{file}", read_run(Path(file)))


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _unwritable(path: Path, error: OSError, option: str = "--run-out") -> UsageError:
    return UsageError(
        f"option {option} `{path}`",
        got=error.strerror or str(error),
        wanted="a file that can be written",
        fix=f"Name another file: {option} FILE",
    )
