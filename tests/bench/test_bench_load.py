"""Load processes: whose turn it is while a schedule is to be kept."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess

import pytest

from skillserve_bench.load.generator import Generator
from skillserve_bench.load.priority import first_of_all, may_be_first
from skillserve_bench.load.schedule import ClosedLoop, Load, OpenLoop, Phase
from skillserve_bench.load.target import Send
from skillserve_bench.load.worker import Order, serve_loads


@dataclass(frozen=True)
class Policy:
    """Answers how the thread that sends is scheduled."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Send]:
        """Connect to nobody."""

        async def send(_payload: bytes) -> bytes:
            return str(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK).encode()

        yield send


def test_a_load_process_comes_first_while_it_keeps_a_schedule_and_only_then() -> None:
    first = os.SCHED_RR if may_be_first() else os.SCHED_OTHER
    schedule = OpenLoop.draw([Phase(50.0, 0.2)], arrivals="constant", seed=1)
    loads: list[tuple[Load, int]] = [
        (ClosedLoop(num_clients=1, seconds=None), os.SCHED_OTHER),
        (schedule, first),
        (ClosedLoop(num_clients=1, seconds=None), os.SCHED_OTHER),
    ]
    with Generator(num_workers=1) as generator:
        for load, wanted in loads:
            num = len(load.offsets) if isinstance(load, OpenLoop) else 3
            run = generator.drive(Policy(), [b"x"] * num, load, window_s=0.1, keep_answers=True)
            assert {int(answer) for answer in run.answers} == {wanted}


def test_a_load_process_ends_with_its_parent_whenever_that_is() -> None:
    order = Order(
        target=Policy(), payloads=[b"x"], load=ClosedLoop(num_clients=1, seconds=None), window_s=0.1, keep_answers=False
    )
    context = multiprocessing.get_context("spawn")
    for connected in (False, True):
        ours, theirs = context.Pipe()
        process = context.Process(target=serve_loads, args=(theirs,))
        process.start()
        theirs.close()
        if connected:
            ours.send(order)
            assert ours.recv() is None
        ours.close()  # in the place of the moment to start
        process.join(60)
        assert process.exitcode == 0


def test_load_processes_end_where_not_all_of_them_could_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = SpawnProcess.start, []

    def once(process: SpawnProcess) -> None:
        if started:
            raise OSError(errno.EAGAIN, "no more processes")
        start(process)
        started.append(process)

    monkeypatch.setattr(SpawnProcess, "start", once)
    with pytest.raises(OSError, match="no more"), Generator(num_workers=2):
        pytest.fail("it began")
    assert not started[0].is_alive()


def test_a_thread_that_was_first_is_again_what_it_was_and_those_it_made_never_were() -> None:
    found: dict[str, int] = {}

    def look(name: str) -> None:
        found[name] = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK

    def keep_a_schedule() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        with first_of_all() as allowed:
            look("during")
            made = threading.Thread(target=look, args=("made",))
            made.start()
            made.join()
        look("after")
        assert found["during"] == (os.SCHED_RR if allowed else os.SCHED_BATCH)

    thread = threading.Thread(target=keep_a_schedule)
    thread.start()
    thread.join()
    assert found["after"] == os.SCHED_BATCH
    assert found["made"] != os.SCHED_RR
    assert (found["during"] == os.SCHED_RR) == may_be_first()
