"""A peer's daemon, for as long as a block runs."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from skillserve.console import talk
from skillserve.errors import ServerStartError
from skillserve_bench.child import first_event, stop, terminable

__all__ = ["Daemon", "started_daemon"]

_ALONE = Path(__file__).parent / "alone"
_START_S = 900
"""Opening exports graphs, and a library may compile them."""
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Variables of the environment that would lead an interpreter out of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A daemon that is ready."""

    port: int
    pid: int
    threads: int
    """That it was told to compute with."""


@contextmanager
def started_daemon(name: str, engine: str, python: Path, folder: Path) -> Iterator[Daemon]:
    """Start an engine on a folder with the peer's own interpreter; ServerStartError with the last thing it said."""
    inherited = {key: value for key, value in os.environ.items() if key not in _OURS}
    # Weights are here; a peer that asked the network for them would measure the network.
    own = {"PYTHONPATH": str(_ALONE), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with ExitStack() as stack:
        stack.enter_context(terminable())
        told = stack.enter_context(tempfile.TemporaryFile())
        process = stack.enter_context(
            subprocess.Popen(  # noqa: S603, RUF100
                [str(python), "-m", "skillserve_peer", engine, str(folder)],
                stdin=subprocess.PIPE,  # its end tells the daemon that we are gone
                stdout=subprocess.PIPE,
                stderr=told,
                env=inherited | own,
                start_new_session=True,
            )
        )
        stack.callback(stop, process)
        talk(f"starting peer {name}")
        ready = first_event(process, within_s=_START_S)
        if ready.get("event") != "ready":
            told.seek(0)
            lines = [line for line in told.read().decode(errors="replace").splitlines() if line.strip()]
            raise ServerStartError(
                f"peer `{name}`",
                got=f"no ready line; it last said: {(lines or ['nothing'])[-1].strip()}",
                wanted="a daemon that is ready",
                fix=f"Install it again: skillserve bench peers install {name}",
            )
        yield Daemon(port=ready["port"], pid=ready["pid"], threads=ready["threads"])
