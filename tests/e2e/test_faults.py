"""What breaks at 3 a.m.: a dead server, a dead stub, a taken port, a repository without weights, a flipped byte."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.errors import BundleError, ServerError, ServerUnreachable
from skillserve.settings import ClientSettings, SearchSettings
from skillserve_client import Searcher, Triton

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- where Triton puts it

pytestmark = pytest.mark.e2e

Command = Callable[..., subprocess.CompletedProcess[str]]


def stubs_of(server: Any) -> list[int]:
    """Process ids of the stubs below the server, one per model."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if int(parent) == server.ready["pid"] and b"triton_python_backend_stub" in command:
                found.append(int(folder.name))
    return found


def test_an_absent_server_is_exit_code_5(bundles: Path, skillserve: Command) -> None:
    result = skillserve("search", "x", "--bundles", str(bundles), "--url", "127.0.0.1:9", "--json", check=False)
    assert result.returncode == 5
    assert json.loads(result.stdout)["error"] == "ServerUnreachable"
    assert "skillserve serve" in result.stderr


def test_a_server_killed_during_a_search_is_an_error_that_says_so(
    serve: Callable[..., Any], repository: Path, bundles: Path
) -> None:
    """The search in progress fails cleanly; the supervisor brings the server back and the same client goes on."""
    with serve(repository, "--health-interval-s", "0.5") as server:
        settings = SearchSettings(rerank_depth=5)
        with Searcher.connect(bundles, client=ClientSettings(url=server.url), settings=settings) as searcher:
            assert searcher.search("find a log").hits
            os.kill(server.ready["pid"], signal.SIGKILL)
            with pytest.raises(ServerUnreachable):
                _search_until_it_fails(searcher)
            assert eventually(lambda: bool(searcher.search("find a log").hits))
        # The event follows once every model of the new server has answered its probe.
        assert eventually(lambda: any(event["event"] == "restarted" for event in server.events))


def test_a_killed_stub_turns_health_red_and_is_repaired(serve: Callable[..., Any], repository: Path) -> None:
    """Triton stays `ready` with a dead stub; only a real inference shows it."""
    with serve(repository, "--health-interval-s", "0.5") as server, Triton(ClientSettings(url=server.url)) as triton:
        sequence = [np.array([5, 6, 7], np.int32)]
        before = triton.infer("embedder", sequence)
        for stub in stubs_of(server):
            os.kill(stub, signal.SIGKILL)
        assert eventually(lambda: np.array_equal(triton.infer("embedder", sequence), before))
        assert eventually(lambda: bool({"repaired", "restarted"} & {event["event"] for event in server.events}))
        assert "unhealthy" in [event["event"] for event in server.events]


def _search_until_it_fails(searcher: Searcher) -> None:
    for _ in range(50):
        searcher.search("find a log")


def eventually(works: Callable[[], bool], timeout_s: float = 60.0) -> bool:
    """Ask again until it works, or the time is up."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if works():
                return True
        except ServerError:
            pass
        time.sleep(0.2)
    return False


def test_a_taken_port_is_refused(server: Any, repository: Path, skillserve: Command) -> None:
    port = server.url.rpartition(":")[2]
    result = skillserve("serve", "--repository", str(repository), "--grpc-port", port, check=False)
    assert result.returncode == 5
    assert port in result.stderr


def test_a_repository_without_weights_is_refused(skillserve: Command) -> None:
    """The committed configurations have no graphs: the error names the file and the command."""
    committed = Path(__file__).parent.parent.parent / "model_repository"
    assert not list(committed.rglob("model.onnx")), "exported into the clone: remove it for this test"
    result = skillserve("serve", "--repository", str(committed), check=False)
    assert result.returncode == 4
    assert "skillserve export" in result.stderr


@pytest.mark.parametrize("damage", ["flip", "remove", "append"])
def test_a_damaged_bundle_is_never_parsed(server: Any, bundles: Path, tmp_path: Path, damage: str) -> None:
    """Whatever file is damaged, and however."""
    names = [path.name for path in next(path for path in bundles.iterdir() if path.is_dir()).iterdir()]
    assert len(names) >= 6
    for name in names:
        copy = tmp_path / name
        shutil.copytree(bundles, copy)
        victim = next(copy.rglob(name))
        content = bytearray(victim.read_bytes())
        if damage == "remove":
            victim.unlink()
        elif damage == "append":
            victim.write_bytes(content + b"\n")
        else:
            content[len(content) // 2] ^= 1
            victim.write_bytes(content)
        with pytest.raises(BundleError, match=name.replace(".", r"\.")):
            Searcher.connect(copy, client=ClientSettings(url=server.url))


def test_nothing_is_left_behind(serve: Callable[..., Any], repository: Path) -> None:
    """No process and no shared memory of a stopped server."""
    before = set(SHARED_MEMORY.iterdir())
    with serve(repository) as server:
        pids = [server.ready["pid"], *stubs_of(server)]
        assert len(pids) == 3
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert {path for path in SHARED_MEMORY.iterdir() if "triton" in path.name} <= before
