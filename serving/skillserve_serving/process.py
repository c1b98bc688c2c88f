"""A server's process: spawned so that it dies with us, watched, and stopped with everything that belongs to it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from skillserve.errors import ServerStartError
from skillserve_serving import guard
from skillserve_serving.ownership import remove_regions
from skillserve_serving.serverlog import ServerLog

__all__ = ["ServerProcess", "room_needed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProcess:
    """A running server process with what belongs to it."""

    popen: subprocess.Popen[bytes]
    pidfd: int
    """Readable once the process is dead; unlike `wait` it leaves the pid, and so the group, ours until reaped."""
    regions: str
    """Prefix of its shared-memory regions."""
    log: ServerLog

    @classmethod
    def spawned(
        cls, command: Sequence[str], *, environment: Mapping[str, str], regions: str, output: BinaryIO, log: Path
    ) -> Self:
        """Start it in a session of its own; both its streams go to `output`, the end of the file `log`."""
        watched = ServerLog(log)  # from here on
        popen = subprocess.Popen(  # noqa: S603, RUF100
            [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            pidfd = os.pidfd_open(popen.pid)
        except OSError:  # no file descriptor is left: nobody could stop it, and it would keep its ports
            os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()
            raise
        return cls(popen=popen, pidfd=pidfd, regions=regions, log=watched)

    def wait(self, timeout_s: float) -> bool:
        """Wait for it to die, at most so long; returns whether it is dead."""
        return bool(select.select([self.pidfd], [], [], timeout_s)[0])

    def stop(self, grace_s: float) -> None:
        """End it and its stubs, after at most `grace_s` for the requests in flight, and remove its shared memory."""
        if grace_s > 0:
            with contextlib.suppress(ProcessLookupError):  # not `terminate`, which reaps whoever is dead
                signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
            self.wait(grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        os.close(self.pidfd)
        remove_regions(self.regions)


@contextlib.contextmanager
def room_needed() -> Iterator[None]:
    """What the system refuses while a server is laid out and spawned is an error of its start."""
    try:
        yield
    except OSError as error:
        raise ServerStartError(
            "what the server needs of this machine",
            got=str(error),
            wanted="room for a few MiB in the temporary folder, and for one more process",
            fix="Free some, or name another folder for temporary files: TMPDIR=… skillserve serve",
        ) from error
