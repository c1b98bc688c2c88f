"""Processes that are started for a measurement: they say when they are ready, and end with it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["first_event", "stop", "terminable"]

_STOP_S = 20
"""`skillserve serve` gives Triton 10 s to finish; Triton is bound to its life and falls with it."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does; by default it would end this process and leave the server running."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def first_event(process: subprocess.Popen[bytes], *, within_s: float) -> dict[str, Any]:
    """The first line of JSON on its stdout; empty if it ends or stays silent until the deadline."""
    if process.stdout is None:
        raise ValueError("the process was started without a pipe")
    deadline = time.monotonic() + within_s
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            return {}
        if not (part := os.read(process.stdout.fileno(), 65_536)):
            return {}
        line += part
    event: dict[str, Any] = json.loads(line.split(b"\n", 1)[0])
    return event


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, then end whatever is left of its group; it was started as the leader of a session."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    # Also of one that ended: SIGTERM before its handler is installed takes the leader alone, and leaves its children.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
