"""Sets load processes going, and adds up what they saw.

One asyncio process sends a few thousand requests a second; more of them keep the client from being what is
measured. How busy the busiest was is part of every result.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from skillserve.console import talk
from skillserve.errors import ServerError, SkillserveError
from skillserve.machine import num_cores
from skillserve_bench.load.schedule import Load, OpenLoop
from skillserve_bench.load.target import Target
from skillserve_bench.load.windows import Window, merge_windows
from skillserve_bench.load.worker import COMPLETED, SERVER_GONE, STOPPED, Order, Outcome, serve_loads

__all__ = ["COMPLETED", "INTERRUPTED", "SERVER_GONE", "WORKER_DIED", "Generator", "Run", "num_workers_for"]

INTERRUPTED, WORKER_DIED = "interrupted (Ctrl-C)", "a load process died"

_LEAD_NS = 200_000_000
"""Between telling the processes when to start and that moment."""

_STOP_S = 10


def num_workers_for(wanted: int) -> int:
    """The number wanted, or for 0 one process for each two cores, so that the server keeps half the machine."""
    return wanted or max(num_cores() // 2, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one load brought, all processes together."""

    load: Load
    windows: Sequence[Window]
    window_s: float
    ended: str
    """COMPLETED, or why it ended before; then `windows` hold what was measured until then."""
    wall_s: float
    cpu_s: float
    """Processor seconds of the load processes."""
    beside_s: float
    """And of those that targets run beside them."""
    busiest: float
    """Share of one core that the busiest of them used."""
    clock_step_s: float
    """How far the wall clock moved beyond the time that passed. Latencies do not depend on it."""
    answers: list[bytes]
    """By payload, if they were to be kept."""
    error: SkillserveError | None

    @property
    def num_answered(self) -> int:
        """Requests answered with success."""
        return sum(window.latencies.num for window in self.windows)

    @property
    def per_s(self) -> float:
        """Requests answered a second, over the whole run."""
        return self.num_answered / self.wall_s


class Generator:
    """Load processes, for as long as the block runs.

    >>> with Generator(num_workers=2) as generator:  # doctest: +SKIP
    ...     run = generator.drive(target, payloads, ClosedLoop(num_clients=8, seconds=None), window_s=1.0)
    """

    def __init__(self, *, num_workers: int) -> None:
        self.num_workers = num_workers
        self.interrupted = False
        """Whether Ctrl-C was pressed during a load; its run and all before it stand."""
        self._processes: list[tuple[Any, Connection]] = []

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")  # a fork would share gRPC's threads, which do not survive it
        with ExitStack() as unfinished:
            unfinished.push(self)
            for _ in range(self.num_workers):
                ours, theirs = context.Pipe()
                # No daemon, which may have no process beside it; the end of the pipe ends it, whatever happens to us.
                process = context.Process(target=serve_loads, args=(theirs,))
                process.start()
                theirs.close()
                self._processes.append((process, ours))
            unfinished.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, connection in self._processes:
            _tell(connection, None)
            connection.close()
        for process, _ in self._processes:
            process.join(_STOP_S if kind is None else 1)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes.clear()

    def drive(
        self, target: Target, payloads: Sequence[bytes], load: Load, *, window_s: float, keep_answers: bool = False
    ) -> Run:
        """Send the payloads as the load says; an open loop has one for each of its requests.

        Raises SkillserveError if a process cannot connect. What fails later is counted, not raised; Ctrl-C ends the
        load and sets `interrupted`.
        """
        if isinstance(load, OpenLoop) and len(payloads) != len(load.offsets):
            raise ValueError(f"{len(payloads)} payloads for {len(load.offsets)} scheduled requests")
        num = self.num_workers if isinstance(load, OpenLoop) else min(self.num_workers, load.num_clients)
        connections = [connection for _, connection in self._processes[:num]]
        for i, connection in enumerate(connections):
            order = Order(
                target=target,
                payloads=list(payloads[i::num]),
                load=load.share(i, num),
                window_s=window_s,
                keep_answers=keep_answers,
            )
            _tell(connection, order)
        _all_connected(connections)
        before = time.time(), time.monotonic()
        begin_ns = time.monotonic_ns() + _LEAD_NS
        for connection in connections:
            _tell(connection, begin_ns)
        reports = self._reports(connections)
        step_s = clock_step(before, (time.time(), time.monotonic()))
        outcomes = [report for report in reports if isinstance(report, Outcome)]
        if not outcomes:
            raise _died()
        answers: list[bytes] = []
        if keep_answers and len(outcomes) == num:
            answers = [b""] * len(payloads)
            for i, outcome in enumerate(outcomes):
                answers[i::num] = outcome.answers
        return Run(
            load=load,
            windows=merge_windows(outcome.windows for outcome in outcomes),
            window_s=window_s,
            ended=self._ending(outcomes, num),
            wall_s=max(outcome.wall_s for outcome in outcomes),
            cpu_s=sum(outcome.cpu_s for outcome in outcomes),
            beside_s=sum(outcome.beside_s for outcome in outcomes),
            busiest=max(outcome.cpu_s / outcome.wall_s for outcome in outcomes),
            clock_step_s=step_s,
            answers=answers,
            error=next((outcome.error for outcome in outcomes if outcome.error is not None), None),
        )

    def _reports(self, connections: Sequence[Connection]) -> list[Any]:
        """What the processes report; EOFError in the place of one that died."""
        heard: list[Any] = []
        while len(heard) < len(connections):
            try:
                heard.append(_heard(connections[len(heard)]))
            except KeyboardInterrupt:
                if self.interrupted:
                    raise
                self.interrupted = True
                talk("Interrupted: waiting a second for what is on its way. Once more gives everything up.")
                for connection in connections:
                    _tell(connection, STOPPED)
        return heard

    def _ending(self, outcomes: Sequence[Outcome], num: int) -> str:
        endings = {outcome.ended for outcome in outcomes}
        if self.interrupted and STOPPED in endings:
            return INTERRUPTED
        if len(outcomes) < num:
            return WORKER_DIED
        return SERVER_GONE if SERVER_GONE in endings else COMPLETED


def clock_step(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Seconds that the wall clock moved beyond the monotonic one, each pair being (wall, monotonic)."""
    return (after[0] - before[0]) - (after[1] - before[1])


def _all_connected(connections: Sequence[Connection]) -> None:
    """Wait until every process has its connection; what one of them raised is raised, and the others stand down."""
    problems = [problem for problem in map(_heard, connections) if problem is not None]
    if problems:
        for connection in connections:
            _tell(connection, STOPPED)
        raise problems[0] if isinstance(problems[0], SkillserveError) else _died()


def _tell(connection: Connection, message: object) -> None:
    with suppress(OSError):  # it died; whoever waits for its answer learns that
        connection.send(message)


def _heard(connection: Connection) -> Any:  # noqa: ANN401 -- None, an error or an Outcome
    """The next message of a process; EOFError itself if it died."""
    try:
        return connection.recv()
    except (EOFError, OSError) as error:
        return error


def _died() -> ServerError:
    return ServerError(
        "load process",
        got="its end before it reported",
        wanted="a report",
        fix="Look for the reason in the kernel's log (out of memory?), then run with fewer requests or --num-workers.",
    )
