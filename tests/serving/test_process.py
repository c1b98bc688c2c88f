"""A server's process alone, with a command in the server's place: nobody is left behind, and nobody is reaped early."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from skillserve_serving.process import ServerProcess


def spawned(tmp_path: Path, code: str) -> ServerProcess:
    log = tmp_path / "log"
    with log.open("wb") as output:
        return ServerProcess.spawned(
            [sys.executable, "-c", code], environment={}, regions="skillserve-none-", output=output, log=log
        )


def test_a_process_that_cannot_be_watched_is_not_left_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []

    def refused(pid: int) -> int:
        pids.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refused)
    with pytest.raises(OSError, match="Too many open files"):
        spawned(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(ProcessLookupError):  # killed, and reaped as well
        os.kill(pids[0], 0)


def test_what_a_dead_server_started_ends_with_it(tmp_path: Path) -> None:
    """The pid of the dead stays theirs until the group was killed."""
    server = spawned(tmp_path, "import os, time\nif os.fork() == 0: time.sleep(60)\nelse: print('up', flush=True)")
    assert server.wait(60)
    group = server.popen.pid
    server.stop(grace_s=1)
    assert server.popen.returncode == 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until whoever adopted it has reaped it
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("a process of the dead server's group is alive")
