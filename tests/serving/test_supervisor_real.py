# ruff: noqa: S607 - a tool of the test machine
"""How a real server is kept answering: repairs, restarts, and models that are exported anew under it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from skillserve_serving import health
from skillserve_serving.health import Health
from skillserve_serving.launcher import Triton, running_server
from skillserve_serving.supervisor import Event, Limits, Supervisor

PATIENCE_S = 20
"""How long a test waits for something that takes about one second."""


def stub_of(server: Triton, model: str) -> int:
    """Process id of a model's stub."""
    found = subprocess.run(["pgrep", "-P", str(server.pid), "-f", model], capture_output=True, text=True)
    return int(found.stdout.split()[0])


def test_a_killed_stub_turns_red_and_is_repaired_while_the_other_model_serves(server: Triton) -> None:
    events: list[Event] = []
    supervisor = Supervisor(server, tell=events.append)
    supervisor.check()
    assert events == []
    pid = server.pid
    os.kill(stub_of(server, "skill_embedder"), signal.SIGKILL)
    assert server.health.ready("skill_embedder"), "this is why readiness proves nothing"
    supervisor.check()
    assert [(event.kind, event.model) for event in events] == [
        ("unhealthy", "skill_embedder"),
        ("repaired", "skill_embedder"),
    ]
    supervisor.check()
    assert len(events) == 2
    assert server.pid == pid


def test_a_hanging_stub_counts_as_busy_first_and_is_repaired_when_nothing_moves(server: Triton) -> None:
    """One late answer may be a long queue; a model that finishes nothing between two probes hangs."""
    events: list[Event] = []
    patient = server.health
    server.health = Health(server.http_url, timeout_s=1)
    try:
        os.kill(stub_of(server, "skill_reranker"), signal.SIGSTOP)
        supervisor = Supervisor(server, tell=events.append)
        supervisor.check()
        supervisor.check()
    finally:
        server.health = patient
    assert [event.kind for event in events] == ["busy", "unhealthy", "repaired"]
    assert {event.model for event in events} == {"skill_reranker"}


@pytest.fixture
def hung(server: Triton) -> Iterator[Triton]:
    """The shared server with its process stopped; whoever restarts it leaves a healthy one."""
    patient, first = server.health, server.pid or 0
    server.health = Health(server.http_url, timeout_s=1)
    os.kill(first, signal.SIGSTOP)
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGCONT)
        server.health = patient


def test_a_hanging_server_is_restarted_without_any_repair(hung: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_LIVE_TIMEOUT_S", 1)
    told: list[Event] = []
    Supervisor(hung, tell=told.append).check()
    assert [event.kind for event in told] == ["died", "restarted"]


def test_an_unload_that_nobody_answers_is_not_tried_again(hung: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server hangs just after it gave its sign of life."""
    monkeypatch.setattr(health, "_UNLOAD_TIMEOUT_S", 1)
    monkeypatch.setattr(hung.health, "live", lambda: True)
    monkeypatch.setitem(Supervisor._restart.__kwdefaults__, "grace_s", 1)  # it would be waited for in vain
    told: list[Event] = []
    Supervisor(hung, tell=told.append).check()
    assert [event.kind for event in told] == ["unhealthy", "unhealthy", "restarted"]
    assert "repair given up: no answer in 1 s" in told[1].detail


def export_anew(folder: Path) -> None:
    """Put other weights with their own digest and probe into a toy's folder, as an export does."""
    graph = onnx.load(folder / "1" / "model.onnx")
    table = next(tensor for tensor in graph.graph.initializer if tensor.name == "table")
    table.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(table), "table"))
    onnx.save(graph, folder / "1" / "model.onnx")
    for name in ("config.pbtxt", "card.json"):
        (folder / name).write_text((folder / name).read_text().replace("e" * 64, "a" * 64))
    probe = json.loads((folder / "probe.json").read_text())
    probe["expected"] = [[2 * number for number in row] for row in probe["expected"]]
    (folder / "probe.json").write_text(json.dumps(probe))


@pytest.mark.parametrize("victim", ["stub", "server"])
def test_a_model_that_was_exported_anew_is_served_after_a_repair_or_restart(
    victim: str, repository: Path, toys: Any
) -> None:
    told: list[Event] = []
    with running_server(toys.settings(repository, log_file=repository.parent / "log")) as server:
        supervisor = Supervisor(server, tell=told.append)
        export_anew(repository / "skill_embedder")
        supervisor.check()
        assert told == [], "what is loaded stays what it was"
        os.kill(stub_of(server, "skill_embedder") if victim == "stub" else server.pid or 0, signal.SIGKILL)
        assert victim == "stub" or server.wait(PATIENCE_S)
        supervisor.check()
        kinds = (
            ["unhealthy", "model_changed", "repaired"] if victim == "stub" else ["died", "model_changed", "restarted"]
        )
        assert [event.kind for event in told] == kinds
        assert told[1].detail == "digest eeeeeeeeeeee → aaaaaaaaaaaa"
        supervisor.check()
        assert len(told) == 3


def test_what_the_system_refuses_during_a_restart_is_a_failed_restart(
    repository: Path, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []
    server = Triton(toys.settings(repository))
    starts = iter([OSError("no more processes"), None])

    def start() -> None:
        if error := next(starts):
            raise error

    monkeypatch.setattr(server, "start", start)
    Supervisor(server, tell=told.append, limits=Limits(backoff_s=0)).check()
    assert [event.kind for event in told] == ["died", "died", "restarted"]
    assert "no more processes" in told[1].detail
