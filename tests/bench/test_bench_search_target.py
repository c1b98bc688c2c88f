"""The process beside a load process that carries out whole searches: what goes in, comes out, and ends it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from skillserve.errors import BundleError, QueryError, ServerUnreachable
from skillserve.settings import ClientSettings, IndexSettings, SearchSettings
from skillserve_bench.load.generator import COMPLETED, SERVER_GONE, Generator
from skillserve_bench.load.schedule import ClosedLoop, OpenLoop, Phase
from skillserve_bench.load.search import SearchTarget
from skillserve_bench.load.target import Send


@dataclass(frozen=True, slots=True)
class Puppet(SearchTarget):
    """Does in that process what a payload says."""

    @asynccontextmanager
    async def searcher(self) -> AsyncIterator[Send]:
        """Search nothing."""
        cancelled = 0

        async def send(payload: bytes) -> bytes:
            nonlocal cancelled
            match payload.decode().split():
                case ["who"]:
                    return f"{os.getpid()} {os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK}".encode()
                case ["compute"]:
                    return b"%d" % sum(i * i for i in range(200_000))
                case ["wait"]:
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        cancelled += 1
                        raise
                case ["cancelled"]:
                    return b"%d" % cancelled
                case ["ours"]:
                    raise QueryError("request", got="nothing", wanted="words", fix="Ask.")
                case ["bug"]:
                    raise KeyError("a mistake of this program")
                case ["die"]:
                    os.kill(os.getpid(), signal.SIGKILL)
            return payload

        yield send


PUPPET = Puppet(ClientSettings(), IndexSettings(), SearchSettings())


def exchange(*payloads: bytes) -> list[bytes | BaseException]:
    """What comes of payloads, one after another."""

    async def ask() -> list[bytes | BaseException]:
        found: list[bytes | BaseException] = []
        async with PUPPET.open() as send:
            for payload in payloads:
                found += await asyncio.gather(send(payload), return_exceptions=True)
        return found

    return asyncio.run(ask())


def test_answers_come_from_another_process_and_our_errors_as_they_were_raised() -> None:
    who, error, echo = exchange(b"who", b"ours", b"still there")
    assert isinstance(who, bytes)
    assert int(who.split()[0]) != os.getpid()
    assert isinstance(error, QueryError)
    assert (error.subject, error.got, error.wanted, error.fix) == ("request", "nothing", "words", "Ask.")
    assert echo == b"still there"


def test_answers_come_to_those_who_asked_in_any_order() -> None:
    async def ask() -> list[bytes]:
        async with PUPPET.open() as send:
            never = asyncio.create_task(send(b"wait"))
            answers = await asyncio.gather(*(send(b"number %d" % i) for i in range(100)))
            assert not never.done()
            never.cancel()
            return answers

    assert asyncio.run(ask()) == [b"number %d" % i for i in range(100)]


def test_a_search_whose_sender_has_left_is_cancelled() -> None:
    async def ask() -> bytes:
        async with PUPPET.open() as send:
            waiting = asyncio.create_task(send(b"wait"))
            await send(b"after it")
            waiting.cancel()
            await asyncio.wait({waiting})
            await send(b"after that")
            return await send(b"cancelled")

    assert asyncio.run(ask()) == b"1"


@pytest.mark.parametrize(("payload", "code"), [(b"die", "-9"), (b"bug", "1")])
def test_its_end_is_an_error_with_the_exit_code(payload: bytes, code: str, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = exchange(payload, b"after it")
    for error in (first, second):
        assert isinstance(error, ServerUnreachable)
        assert f"exit code {code}" in error.got
    assert ("a mistake of this program" in capfd.readouterr().err) == (payload == b"bug")


def test_what_keeps_it_from_searching_is_raised_at_the_beginning(tmp_path: Path) -> None:
    target = SearchTarget(ClientSettings(), IndexSettings(bundles=tmp_path / "none"), SearchSettings())

    async def start() -> None:
        async with target.open():
            pytest.fail("it started")

    with pytest.raises(BundleError, match="none"):
        asyncio.run(start())


def test_it_computes_beside_the_load_process_and_at_usual_priority() -> None:
    schedule = OpenLoop.draw([Phase(50.0, 0.4)], arrivals="constant", seed=1)
    num = len(schedule.offsets)
    with Generator(num_workers=1) as generator:
        run = generator.drive(PUPPET, [b"who"] * num, schedule, window_s=0.1, keep_answers=True)
        (process, _), *_ = generator._processes
        busy = generator.drive(PUPPET, [b"compute"] * 40, ClosedLoop(num_clients=1, seconds=None), window_s=0.1)
        gone = generator.drive(PUPPET, [b"die"] * 2000, ClosedLoop(num_clients=1, seconds=None), window_s=0.1)
    assert run.ended == busy.ended == COMPLETED
    pids, policies = zip(*(answer.decode().split() for answer in run.answers), strict=True)
    assert len(set(pids)) == 1
    assert int(pids[0]) not in (os.getpid(), process.pid)
    assert set(policies) == {str(os.SCHED_OTHER)}
    assert busy.beside_s > busy.cpu_s
    assert gone.ended == SERVER_GONE
    assert gone.error is not None
    assert "exit code -9" in gone.error.got
    assert not process.is_alive()
