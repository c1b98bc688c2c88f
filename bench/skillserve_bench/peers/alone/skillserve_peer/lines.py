"""The protocol: one line a request, one line an answer, over TCP on loopback; answers come in any order.

    request   NUMBER DEADLINE {"embed": TEXT, "rerank": TEXT}
    answer    NUMBER {"ids": [SKILL, ...]}    or    NUMBER {"error": TEXT}

NUMBER is the sender's, DEADLINE a moment of CLOCK_MONOTONIC in nanoseconds. Who turns up after it gets no answer, and
costs nothing: its sender has left.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from .job import Request

__all__ = ["Late", "Search", "serve"]

Search = Callable[[Request, int], Awaitable[Sequence[str]]]
"""A request and its deadline → ids, best first; raises Late, or whatever its library does."""

_LONGEST_LINE = 2**22


class Late(Exception):
    """The deadline passed before the work began."""


async def serve(search: Search, ready: Callable[[int], None]) -> None:
    """Serve on a free port, told to `ready`, until SIGTERM, or until stdin ends because the parent is gone."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    threading.Thread(target=_until_parent_ends, args=(loop, stop), daemon=True).start()
    server = await asyncio.start_server(_Session(search).talk, "127.0.0.1", 0, limit=_LONGEST_LINE)
    async with server:
        ready(server.sockets[0].getsockname()[1])
        await stop.wait()


def _until_parent_ends(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(0, 1):
        pass
    with suppress(RuntimeError):  # the loop ended first
        loop.call_soon_threadsafe(stop.set)


class _Session:
    """Every request is a task of its own; how many run at once is the search's business."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._tasks: set[asyncio.Task[None]] = set()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                task = asyncio.create_task(self._answer(line, writer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (ConnectionError, asyncio.CancelledError):
            pass  # its sender ended, or the daemon does
        finally:
            writer.close()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        number, deadline_ns, payload = line.split(b" ", 2)
        if time.monotonic_ns() > int(deadline_ns):
            return
        found: dict[str, object]
        try:
            found = {"ids": await self._search(Request(**json.loads(payload)), int(deadline_ns))}
        except Late:
            return
        except Exception as error:  # noqa: BLE001 -- libraries raise whatever they like, and the sender is told
            found = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        if not writer.is_closing():
            writer.write(b"%b %b\n" % (number, json.dumps(found).encode()))
