"""SIGKILL at random moments of a real batch run, and what each of them cost."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillserve.errors import SkillserveError

__all__ = ["Kill", "failed_run", "finish", "kill_once"]

_SHARE_EARLY = 0.2
"""Kills before the run says that it began: while it imports, opens models, claims the folder."""
_EARLY_S = 2.0
_MOST_SHARDS = 2
"""Shards that a run finishes before it is killed, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One run that was killed."""

    before: int
    """Finished shards in the folder when it started."""
    resumed: int
    """Finished shards that it went on from, as far as it came."""
    computed: int
    """Shards that it told of as newly finished; one more may have been before it could."""
    repeated: int
    """Shards that it computed although they were finished."""
    after: int
    """Finished shards in the folder when it was dead."""
    missing: int
    """Shards that it told of as finished and that are not in the folder."""
    ended: bool
    """It was done before the kill came."""


def kill_once(command: Sequence[str], folder: Path, *, pause_s: float, rng: random.Random) -> Kill:
    """Start a `skillserve score … --json` into this folder, and kill it within some shards and up to `pause_s` more.

    Raises SkillserveError if the run fails by itself.
    """
    before = _finished(folder)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        if process.stdout is None:
            raise ValueError("the process was started without a pipe")
        lines: list[str] = []
        if rng.random() < _SHARE_EARLY:
            time.sleep(rng.uniform(0.0, _EARLY_S))
        else:
            left = rng.randint(0, _MOST_SHARDS)
            for line in process.stdout:
                lines.append(line)
                left -= _is_computed(json.loads(line))
                if left <= 0:
                    break
            time.sleep(rng.uniform(0.0, pause_s))
        process.kill()
        lines += [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise failed_run(command, code, lines[-1:])
    shards = [event for event in map(json.loads, lines) if event.get("event") == "shard"]
    after = _finished(folder)
    return Kill(
        before=len(before),
        resumed=sum(event["resumed"] for event in shards),
        computed=sum(not event["resumed"] for event in shards),
        repeated=sum(not event["resumed"] and event["shard"] in before for event in shards),
        after=len(after),
        missing=sum(event["shard"] not in after for event in shards),
        ended=code == 0,
    )


def finish(command: Sequence[str]) -> dict[str, Any]:
    """Let the run come to its end; returns its last event. Raises SkillserveError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode:
        raise failed_run(command, done.returncode, lines[-1:])
    last: dict[str, Any] = json.loads(lines[-1])
    return last


def _finished(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "receipts").glob("[0-9]*.json")}


def _is_computed(event: dict[str, Any]) -> bool:
    return event.get("event") == "shard" and not event["resumed"]


def failed_run(command: Sequence[str], code: int, said: Sequence[str]) -> SkillserveError:
    """The error of a run that ended with this exit code and said so; the first line tells most."""
    return SkillserveError(
        f"command `{' '.join(command[:6])} …`",
        got=f"exit code {code}, {said[0].strip() if said else 'no output'}",
        wanted="a run that comes to its end, or is killed by us",
        fix="Run it by hand to see why.",
    )
