"""Shards on workers of a real Ray on two cores: the same files, whoever dies and whoever goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skillserve.publish import sha256_of
from skillserve_bench.kills import finish, kill_once

pytestmark = pytest.mark.e2e

SHARD_ROWS = 4
COPIES = 6
"""Of the sample, so that the work does not end before the kills."""


def files_of(out: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in (out / "shards").iterdir()}


def workers_of(pid: int) -> list[int]:
    """Processes below this one in which Ray runs a worker of ours."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:  # it ended meanwhile
            continue

    def is_below(each: int) -> bool:
        while each in parents:
            each = parents[each]
            if each == pid:
                return True
        return False

    return [each for each, title in titles.items() if title.startswith("ray::Worker") and is_below(each)]


def kill_a_worker(command: list[str], *, after: int) -> tuple[list[dict[str, Any]], int, str]:
    """Run it, kill one worker when so many shards were computed; its events, its exit code and its talk."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    events: list[dict[str, Any]] = []
    killed = False
    for line in process.stdout or ():
        events.append(json.loads(line))
        num_computed = sum(event.get("event") == "shard" and not event["resumed"] for event in events)
        if not killed and num_computed >= after:
            os.kill(workers_of(process.pid)[0], signal.SIGKILL)
            killed = True
    _, talk = process.communicate()
    assert killed, talk
    return events, process.returncode, talk


@pytest.fixture
def many(catalogue: Path, tmp_path: Path) -> Path:
    """The sample several times over, each skill with an id of its own."""

    def lines() -> Iterator[str]:
        for i in range(COPIES):
            for line in catalogue.read_text().splitlines():
                row = json.loads(line)
                yield json.dumps(row | {"id": f"{row['id']}-{i}"}) + "\n"

    path = tmp_path / "many.jsonl"
    path.write_text("".join(lines()))
    return path


def test_what_one_engine_began_another_finishes_and_a_dead_worker_loses_nothing(
    repository: Path, many: Path, tmp_path: Path
) -> None:
    """Workers are killed twice: once more than is allowed, and once as it is."""
    pytest.importorskip("ray")

    def command(out: Path, engine: str, *options: str) -> list[str]:
        given = ["--models", str(repository), "--shard-rows", str(SHARD_ROWS), "--json", *options]
        score = [sys.executable, "-m", "skillserve", "score", "embed", str(many)]
        return [*score, "--out", str(out), "--engine", engine, *given]

    quiet, out = tmp_path / "quiet", tmp_path / "out"
    undisturbed = finish(command(quiet, "direct"))
    workers = ("--num-workers", "2")

    events, exit_code, _ = kill_a_worker(command(out, "ray", *workers, "--worker-tries", "1"), after=3)
    assert exit_code == 5
    assert events[-1]["error"] == "ServerError"
    assert events[-1]["subject"].startswith("worker of Ray on shard 000")
    assert "1 dead in turn: Worker exit type" in events[-1]["got"]
    began = files_of(out)
    assert len(began) >= 3

    kill = kill_once(command(out, "direct"), out, pause_s=undisturbed["seconds"] / 4, rng=random.Random(28))
    assert (kill.repeated, kill.missing) == (0, 0)

    events, exit_code, talk = kill_a_worker(command(out, "ray", *workers), after=3)
    assert exit_code == 0, talk
    assert "A worker died on shard" in talk
    computed = [event["shard"] for event in events if event["event"] == "shard" and not event["resumed"]]
    assert len(computed) == len(set(computed)) == undisturbed["num_shards"] - kill.after
    done = events[-1]
    assert done["event"] == "done"
    assert [done[name] for name in ("num_rows", "num_scored", "num_shards", "num_resumed")] == [
        *(undisturbed[name] for name in ("num_rows", "num_scored", "num_shards")),
        kill.after,
    ]
    assert files_of(out) == files_of(quiet)
    assert (out / "rejects.jsonl").read_bytes() == (quiet / "rejects.jsonl").read_bytes()


def test_an_address_where_no_ray_is_is_told_within_seconds(repository: Path, catalogue: Path, tmp_path: Path) -> None:
    """Ray itself would try for minutes."""
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
    options = ["--out", str(tmp_path / "out"), "--models", str(repository), "--engine", "ray", "--ray-address", address]
    score = [sys.executable, "-m", "skillserve", "score", "embed", str(catalogue), *options]
    done = subprocess.run(score, capture_output=True, text=True)
    assert done.returncode == 5
    assert f"Ray at {address}: got " in done.stderr
