"""Killing jobs of each kind, and what became of their results in the end."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from skillserve.console import progress
from skillserve.publish import sha256_of
from skillserve_bench.kills import Kill, finish, kill_once
from skillserve_bench.score.jobs import Kind, Victim

__all__ = ["Ordeal", "kill_all"]

_SHARDS_OF_A_KILL = 4
"""More than a kill lets pass, so that the work does not end before the kills."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordeal:
    """What a job went through."""

    kind: Kind
    kills: list[Kill]
    """Fewer than were asked for if the work ended before."""
    identical: bool
    """The files are those of an undisturbed run, byte for byte."""
    each_row_once: bool
    """All files together hold every row of the input that has a result once, and no other."""

    @property
    def lost(self) -> int:
        """Shards that were told of as finished and then were not there."""
        return sum(kill.missing for kill in self.kills)

    @property
    def repeated(self) -> int:
        """Finished shards that were computed again."""
        return sum(kill.repeated for kill in self.kills)

    @property
    def unharmed(self) -> bool:
        """Nothing of all that happened."""
        return self.identical and self.each_row_once and not self.lost and not self.repeated


def kill_all(victims: Sequence[Victim], scratch: Path, *, num_kills: int, seed: int) -> list[Ordeal]:
    """So many kills, evenly over the jobs; raises SkillserveError if a run fails by itself."""
    rng = random.Random(seed)  # noqa: S311 - moments, not cryptography
    # The first jobs get one more where they do not go round.
    shares = [len(range(i, num_kills, len(victims))) for i in range(len(victims))]
    with progress("kills", num_kills) as bar:
        return [
            _killed(victim, scratch, share, rng, bar.advance)
            for victim, share in zip(victims, shares, strict=True)
            if share
        ]


def _killed(victim: Victim, scratch: Path, num_kills: int, rng: random.Random, advance: Callable[[], object]) -> Ordeal:
    num_shards = _SHARDS_OF_A_KILL * num_kills
    quiet, out = scratch / f"{victim.kind}-quiet", scratch / f"{victim.kind}-killed"
    undisturbed = finish(victim.command(quiet, num_shards=num_shards))
    pause_s = undisturbed["seconds"] / max(1, undisturbed["num_shards"])
    command = victim.command(out, num_shards=num_shards)
    kills: list[Kill] = []
    while len(kills) < num_kills:
        kill = kill_once(command, out, pause_s=pause_s, rng=rng)
        if kill.ended:  # the table then says how many there were
            break
        kills.append(kill)
        advance()
    ended = finish(command)
    rows = _rows(out)
    return Ordeal(
        kind=victim.kind,
        kills=kills,
        identical=_digests(quiet) == _digests(out),
        each_row_once=len(rows) == len(set(rows)) == undisturbed["num_scored"] == ended["num_scored"],
    )


def _rows(out: Path) -> list[int]:
    """Positions in the input, as all files together hold them."""
    tables = [pq.read_table(file, columns=["row"]) for file in sorted((out / "shards").iterdir())]
    return [row for table in tables for row in table["row"].to_pylist()]


def _digests(out: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in (out / "shards").iterdir()}
