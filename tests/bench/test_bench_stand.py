"""The test stand: a closed loop gets as many requests as it can send, however slow the pilot was."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from skillserve.settings import BenchSettings
from skillserve_bench.lengths import SMOKE
from skillserve_bench.load.generator import Generator
from skillserve_bench.load.target import Send
from skillserve_bench.measurement import Contender
from skillserve_bench.scenarios.latency import Stand

STALLED_S, ANSWERED_S = 1.5, 0.002
"""Of the first answer, longer than a pilot lasts, and of all others."""


@dataclass(frozen=True)
class SlowToStart:
    """Answers after a while, the first time after a long one."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Send]:
        """Connect to nobody."""
        waits = itertools.chain([STALLED_S], itertools.repeat(ANSWERED_S))

        async def send(payload: bytes) -> bytes:
            await asyncio.sleep(next(waits))
            return payload

        yield send


class Numbered:
    """Payloads none of which is given out twice."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self._numbers = itertools.count()

    def take(self, num: int, *, each: int = 1) -> list[bytes]:
        """The next ones, of one sequence each."""
        assert each == 1
        self.taken.append(num)
        return [str(number).encode() for number in itertools.islice(self._numbers, num)]


def test_a_run_that_is_out_of_requests_before_its_time_is_measured_with_more() -> None:
    supply = Numbered()
    contender = Contender(name="slow to start", target=SlowToStart(), supply=supply)
    with Generator(num_workers=1) as generator:
        stand = Stand(generator, contender, BenchSettings(), length=replace(SMOKE, run_s=1.0))
        results = stand.run(["single"])
    (found,) = results.measurements
    pilot, first, *others = supply.taken
    assert pilot == first == 50  # the pilot met nothing but the stall
    assert others == [first * 4**i for i in range(1, len(others) + 1)]
    assert others
    assert not found.used_up
    assert found.objections == [] or "late" in found.objections[0]  # a busy machine may send late
    assert found.num_answered > 0
