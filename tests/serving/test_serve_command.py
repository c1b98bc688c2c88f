"""`skillserve serve` as an operator sees it: a real process, signals, exit codes, lines on stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from skillserve_serving.ownership import SHARED_MEMORY


def command(settings: Any, *more: str) -> list[str]:
    """The command line for some settings."""
    ports = [
        f"--{name}-port={getattr(settings, f'{name}_port')}"  # one flag each
        for name in ("http", "grpc", "metrics")
    ]
    serve = "import sys; from skillserve.cli import main; sys.exit(main())"
    return [sys.executable, "-c", serve, "serve", f"--repository={settings.repository}", *ports, *more]


@contextmanager
def running(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command as a child that never outlives its test, and that hears SIGHUP even where these tests do not."""
    heard = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a child inherits what is ignored, such as under nohup
    try:
        child = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGHUP, heard)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def events(child: subprocess.Popen[str], count: int) -> list[dict[str, Any]]:
    """The next JSON lines of its stdout."""
    assert child.stdout is not None
    return [json.loads(child.stdout.readline()) for _ in range(count)]


def test_one_ready_line_then_events_then_a_clean_stop(repository: Path, toys: Any) -> None:
    settings = toys.settings(repository)
    with running(command(settings, "--json", "--health-interval-s=0.2")) as child:
        (ready,) = events(child, 1)
        assert ready["event"] == "ready"
        assert ready["grpc"] == f"127.0.0.1:{settings.grpc_port}"
        assert ready["http"] == f"http://127.0.0.1:{settings.http_port}"
        assert [(model["name"], model["version"], model["digest"]) for model in ready["models"]] == [
            ("skill_embedder", 1, "e" * 64),
            ("skill_reranker", 1, "f" * 64),
        ]
        assert ready["server"] == {"kind": "embedded", "version": "2.51.0"}
        assert Path(ready["log"]).is_file()
        os.kill(ready["pid"], signal.SIGKILL)
        died, restarted = events(child, 2)
        assert (died["event"], restarted["event"]) == ("died", "restarted")
        child.send_signal(signal.SIGTERM)
        rest, talk = child.communicate(timeout=30)
        assert child.returncode == 0
        assert rest == ""
        assert "restarted" in talk
    assert not Path(ready["log"]).exists(), "a clean stop leaves no temporary files"
    assert list(SHARED_MEMORY.glob(f"skillserve-*-{child.pid}-*")) == []


def test_people_get_one_line(repository: Path, toys: Any) -> None:
    with running(command(toys.settings(repository))) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line.startswith("ready  grpc 127.0.0.1:")
        assert "skill_embedder v1 eeeeeeeeeeee" in line
        child.send_signal(signal.SIGINT)
        rest, talk = child.communicate(timeout=30)
        assert (child.returncode, rest) == (0, "")
        assert "development only" in talk


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_start_stops_cleanly(number: signal.Signals, repository: Path, toys: Any) -> None:
    with running(command(toys.settings(repository))) as child:
        assert child.stderr is not None
        assert "embedded Triton" in child.stderr.readline()
        child.send_signal(number)
        rest, _ = child.communicate(timeout=30)
        assert (child.returncode, rest) == (0, "")
    assert list(SHARED_MEMORY.glob(f"skillserve-*-{child.pid}-*")) == []


def test_under_nohup_a_lost_terminal_stops_nothing(repository: Path, toys: Any) -> None:
    with running(["/usr/bin/nohup", *command(toys.settings(repository), "--json")]) as child:
        assert child.stderr is not None
        assert any("embedded Triton" in line for line in child.stderr)
        child.send_signal(signal.SIGHUP)
        assert events(child, 1)[0]["event"] == "ready"
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=30)
        assert child.returncode == 0


def test_a_repository_without_graph_exits_4_before_any_server_is_started(repository: Path, toys: Any) -> None:
    (repository / "skill_reranker" / "1" / "model.onnx").unlink()
    done = subprocess.run(command(toys.settings(repository), "--json"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    error = json.loads(done.stdout)
    assert error["error"] == "RepositoryError"
    assert "1/model.onnx" in error["got"]
    assert "skillserve export" in error["fix"]
