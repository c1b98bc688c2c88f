"""A peer's daemon, for as long as a block runs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from skillserve.console import talk
from skillserve.errors import ServerStartError
from skillserve_bench.child import first_event, stop, terminable

__all__ = ["Daemon", "last_words", "started_daemon"]

_ALONE = Path(__file__).parent / "alone"
_START_S = 900
"""Opening exports graphs, and a library may compile them."""
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Variables of the environment that would lead an interpreter out of its own."""
_SECRET = ("TOKEN", "SECRET", "PASSWORD", "KEY")
"""In the name of a variable: others' code has no business with it."""
_TOLD_FILE = "stderr.txt"
_TAIL_BYTES, _TAIL_LINES = 8192, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A daemon that is ready."""

    port: int
    pid: int
    threads: int
    """That it was told to compute with."""
    told: Path
    """File of what it says on stderr."""


def last_words(told: Path) -> str:
    """The last lines of such a file on one line; `nothing` if there are none."""
    try:
        with told.open("rb") as file:
            file.seek(max(told.stat().st_size - _TAIL_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:  # removed together with the folder of the daemon
        lines = []
    return " / ".join([line.strip() for line in lines if line.strip()][-_TAIL_LINES:]) or "nothing"


@contextmanager
def started_daemon(name: str, engine: str, python: Path, folder: Path) -> Iterator[Daemon]:
    """Start an engine on a folder with the peer's own interpreter; ServerStartError with the last lines it said.

    What it says goes into the folder. Its own children, such as infinity's server, inherit the environment it is given.
    """
    told = folder / _TOLD_FILE
    # Weights are here; a peer that asked the network for them would measure the network.
    own = {"PYTHONPATH": str(_ALONE), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with ExitStack() as stack:
        stack.enter_context(terminable())
        says = stack.enter_context(told.open("wb"))
        process = stack.enter_context(
            subprocess.Popen(  # noqa: S603, RUF100
                [str(python), "-m", "skillserve_peer", engine, str(folder)],
                stdin=subprocess.PIPE,  # its end tells the daemon that we are gone
                stdout=subprocess.PIPE,
                stderr=says,
                env=_inherited(os.environ) | own,
                start_new_session=True,
            )
        )
        stack.callback(stop, process)
        talk(f"starting peer {name}")
        ready = first_event(process, within_s=_START_S)
        if ready.get("event") != "ready":
            raise ServerStartError(
                f"peer `{name}`",
                got=f"no ready line; it last said: {last_words(told)}",
                wanted="a daemon that is ready",
                fix=f"Install it again: skillserve bench peers install {name}",
            )
        yield Daemon(port=ready["port"], pid=ready["pid"], threads=ready["threads"], told=told)


def _inherited(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name not in _OURS
        and not name.upper().startswith("SKILLSERVE_")
        and not any(word in name.upper() for word in _SECRET)
    }
