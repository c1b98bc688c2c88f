"""A load process: sends its part of a load at its scheduled moments and notes what happens to each request.

It lives for many loads, since starting one takes longer than a short load. Moments are CLOCK_MONOTONIC's, which
all processes of a machine share and nobody can set.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
import signal
import threading
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from skillserve.errors import ServerUnreachable, SkillserveError
from skillserve_bench.load.priority import first_of_all
from skillserve_bench.load.schedule import Load, OpenLoop
from skillserve_bench.load.target import Send, Target
from skillserve_bench.load.windows import Records, Window, by_window
from skillserve_bench.processor import children_s

__all__ = ["COMPLETED", "SERVER_GONE", "STOPPED", "Order", "Outcome", "serve_loads"]

COMPLETED, STOPPED, SERVER_GONE = "completed", "stopped", "the server went away"

_GONE_NS = 2_000_000_000
"""A server that could not be reached for so long, with no answer in between, is not waited for any longer."""

_REDIAL_S = 0.05
"""Pause of a closed loop's client after a lost connection, which would otherwise use up its requests in no time."""

_GRACE_S = 1.0
"""How long a load that was stopped waits for answers that are on their way."""

_MOST_IN_FLIGHT = 20_000
"""Requests of one process without an answer; beyond that memory would be measured. They fail as ClientFull."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A load to be carried out: `load` and `payloads` are this process's part."""

    target: Target
    payloads: list[bytes]
    load: Load
    window_s: float
    keep_answers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of an order."""

    windows: list[Window]
    ended: str
    """COMPLETED, STOPPED or SERVER_GONE."""
    wall_s: float
    cpu_s: float
    beside_s: float
    """Processor seconds of the processes that targets run beside this one."""
    answers: list[bytes]
    """By payload, empty where there is none; empty altogether unless they were to be kept."""
    error: SkillserveError | None
    """The first failure."""


def serve_loads(connection: Connection) -> None:
    """Body of the process. It is told Orders, then when to start; anything else ends a load, None the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    # epoll's timeouts are whole milliseconds, as much as a request may be late at all; select's are microseconds.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_serve(connection))


async def _serve(connection: Connection) -> None:
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def listen() -> None:
        with suppress(RuntimeError):  # the loop ended first
            message: object = True
            while message is not None:
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    message = None
                loop.call_soon_threadsafe(inbox.put_nowait, message)

    threading.Thread(target=listen, daemon=True).start()
    senders: dict[Target, Send] = {}
    async with AsyncExitStack() as stack:
        while (order := await inbox.get()) is not None:
            if not isinstance(order, Order):
                continue  # a stop that came after the end
            try:
                if order.target not in senders:
                    senders[order.target] = await stack.enter_async_context(order.target.open())
            except SkillserveError as error:
                connection.send(error)
                continue
            run = _Run(order, senders[order.target])
            connection.send(None)
            begin_ns = await inbox.get()
            if begin_ns is None:
                return
            if isinstance(begin_ns, int):
                connection.send(await run.carried_out(begin_ns, inbox))


class _Run:
    """One order in progress."""

    def __init__(self, order: Order, send: Send) -> None:
        self.order, self.send, self.begin_ns = order, send, 0
        self.beside_s = children_s()
        self.records = Records(len(order.payloads))
        self.answers = [b""] * len(order.payloads) if order.keep_answers else []
        self.in_flight: set[asyncio.Task[None]] = set()
        self.lost_since_ns: int | None = None
        self.gone = asyncio.Event()
        self.error: SkillserveError | None = None

    async def carried_out(self, begin_ns: int, inbox: asyncio.Queue[Any]) -> Outcome:
        load, self.begin_ns = self.order.load, begin_ns
        gc.collect()
        gc.disable()  # a collection in between would make requests late
        try:
            await asyncio.sleep((self.begin_ns - time.monotonic_ns()) / 1e9)
            cpu_s, began = time.process_time(), time.monotonic()
            ended = await self._until_stopped(self._open() if isinstance(load, OpenLoop) else self._closed(), inbox)
            wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu_s
        finally:
            gc.enable()
        return Outcome(
            windows=by_window(self.records, self.order.window_s),
            ended=ended,
            wall_s=wall_s,
            cpu_s=cpu_s,
            beside_s=max(children_s() - self.beside_s, 0.0),  # less than before if one of them died
            answers=self.answers,
            error=self.error,
        )

    async def _until_stopped(self, work: Coroutine[Any, Any, None], inbox: asyncio.Queue[Any]) -> str:
        working = asyncio.create_task(work)
        stopped, gone = asyncio.create_task(inbox.get()), asyncio.create_task(self.gone.wait())
        await asyncio.wait({working, stopped, gone}, return_when=asyncio.FIRST_COMPLETED)
        ended = SERVER_GONE if self.gone.is_set() else COMPLETED if working.done() else STOPPED
        if ended != COMPLETED:
            working.cancel()
            if self.in_flight:
                await asyncio.wait(self.in_flight, timeout=_GRACE_S)
        for task in (working, stopped, gone, *self.in_flight):
            task.cancel()
        await asyncio.gather(stopped, gone, *self.in_flight, return_exceptions=True)
        with suppress(asyncio.CancelledError):
            await working
        if stopped.done() and not stopped.cancelled() and stopped.result() is None:
            inbox.put_nowait(None)  # the parent is gone: the process ends after this
        return ended

    def _now(self) -> int:
        return time.monotonic_ns() - self.begin_ns

    async def _open(self) -> None:
        load = self.order.load
        moments = (load.offsets * 1e9).astype("int64").tolist() if isinstance(load, OpenLoop) else []
        with first_of_all():
            for i, moment in enumerate(moments):
                if (left_s := (moment - self._now()) / 1e9) > 0:
                    await asyncio.sleep(left_s)
                self.records.scheduled[i] = moment
                if len(self.in_flight) >= _MOST_IN_FLIGHT:
                    self.records.fail(i, "ClientFull")
                else:
                    self._start(self._one(i))
                if left_s < -1e-4:
                    await asyncio.sleep(0)  # late already: let those that were started go out
            await asyncio.sleep(0)  # the last one goes out, too
        if self.in_flight:
            await asyncio.wait(self.in_flight)

    async def _closed(self) -> None:
        load = self.order.load
        num_clients, seconds = (0, None) if isinstance(load, OpenLoop) else (load.num_clients, load.seconds)
        waiting = iter(range(len(self.order.payloads)))
        end_ns = None if seconds is None else round(seconds * 1e9)

        async def client() -> None:
            for i in waiting:
                free = self._now()
                if end_ns is not None and free >= end_ns:
                    return
                self.records.scheduled[i] = free
                await self._one(i)

        for _ in range(num_clients):
            self._start(client())
        if self.in_flight:
            await asyncio.wait(self.in_flight)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.in_flight.add(task)
        task.add_done_callback(self.in_flight.discard)

    async def _one(self, i: int) -> None:
        records = self.records
        records.sent[i] = self._now()
        try:
            answer = await self.send(self.order.payloads[i])
        except SkillserveError as error:
            records.fail(i, type(error).__name__)
            self.error = self.error or error
            if isinstance(error, ServerUnreachable):
                now = self._now()
                self.lost_since_ns = now if self.lost_since_ns is None else self.lost_since_ns
                if now - self.lost_since_ns >= _GONE_NS:
                    self.gone.set()
                await asyncio.sleep(_REDIAL_S)
            return
        records.done[i] = self._now()
        records.outcome[i] = Records.ANSWERED
        self.lost_since_ns = None
        if self.answers:
            self.answers[i] = answer
