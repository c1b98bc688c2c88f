"""The test stand: runs get as many requests as they can send, and enough time for those that they need."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from statistics import geometric_mean

import pytest

from skillserve.errors import CatalogueError, ServerError
from skillserve.settings import BenchSettings
from skillserve_bench.lengths import SMOKE
from skillserve_bench.load.generator import Generator
from skillserve_bench.load.target import Send
from skillserve_bench.measurement import Contender, Measurement
from skillserve_bench.scenarios import latency
from skillserve_bench.scenarios.latency import Stand, run_in_turns

BRIEF = replace(SMOKE, least_requests=0, run_s=1.0, probe_s=0.4)
"""Durations stand, however slow who answers."""
EACH_S = 0.15
"""Of every answer of a slow contender."""
STALLED_S, ANSWERED_S = 1.5, 0.002
"""Of the first answer, longer than a pilot lasts, and of all others."""


@dataclass(frozen=True)
class Slow:
    """Answers everything after the same while."""

    seconds: float

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Send]:
        """Connect to nobody."""

        async def send(payload: bytes) -> bytes:
            await asyncio.sleep(self.seconds)
            return payload

        yield send


@dataclass(frozen=True)
class Refusing:
    """Answers nothing."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Send]:
        """Connect to nobody."""

        async def send(_payload: bytes) -> bytes:
            raise ServerError("server", got="not today", wanted="an answer", fix="Ask tomorrow.")

        yield send


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


@pytest.fixture(autouse=True)
def brief_pilots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They see two answers of a slow contender, and six where that is not enough."""
    monkeypatch.setattr(latency, "_PILOT_S", 2.5 * EACH_S)
    monkeypatch.setattr(latency, "_LONG_PILOT_S", 6.5 * EACH_S)


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    """One load process, which takes longer to start than most loads here last."""
    with Generator(num_workers=1) as generator:
        yield generator


def test_a_run_that_is_out_of_requests_before_its_time_is_measured_with_more(generator: Generator) -> None:
    supply = Numbered()
    contender = Contender(name="slow to start", target=SlowToStart(), supply=supply)
    stand = Stand(generator, contender, BenchSettings(), length=BRIEF)
    results = stand.run(["single"])
    (found,) = results.measurements
    pilot, first, *others = supply.taken
    assert pilot == first == 50  # the pilot met nothing but the stall
    assert others == [first * 4**i for i in range(1, len(others) + 1)]
    assert others
    assert not found.used_up
    assert found.objections == [] or "late" in found.objections[0]  # a busy machine may send late
    assert found.num_answered > 0


@pytest.mark.parametrize(
    ("per_s", "window_s", "run_s", "probe_s"),
    [
        (100.0, 0.2, 3.0, 1.5),  # as it stands
        (40.0, 0.2, 3.0, 1.5),  # ten answers would take 0.25 s, and there would be twelve windows
        (2.0, 0.8, 12.0, 6.0),  # 24 requests take four times as long; fifteen windows
        (0.1, 1.0, 15.0, 7.5),  # five times as long at most
    ],
)
def test_what_is_slow_gets_longer_runs_in_wider_windows(
    per_s: float, window_s: float, run_s: float, probe_s: float
) -> None:
    found = replace(SMOKE, least_requests=24).at(per_s)
    assert (found.window_s, found.run_s, found.probe_s) == pytest.approx((window_s, run_s, probe_s))
    assert found.overload_s / found.window_s == pytest.approx(round(found.overload_s / found.window_s))
    assert found.overload_s >= SMOKE.overload_s * run_s / SMOKE.run_s - 1e-9


@pytest.mark.parametrize(
    ("bound_s", "run_s", "probe_s"),
    [
        (1.0, 3.0, 1.5),  # a rate that is half too high has a queue of a second after two
        (4.0, 8.0, 4.0),
        (60.0, 15.0, 7.5),  # five times as long at most
    ],
)
def test_a_rate_is_judged_until_it_would_have_a_queue_as_long_as_the_bound(
    bound_s: float, run_s: float, probe_s: float
) -> None:
    found = SMOKE.at(100.0, bound_s=bound_s)
    assert (found.window_s, found.run_s, found.probe_s) == pytest.approx((SMOKE.window_s, run_s, probe_s))


@pytest.mark.parametrize(
    ("per_s", "in_flight", "window_s", "run_s"),
    [
        (100.0, 8, 0.2, 3.36),  # sixteen answers take 0.16 s
        (50.0, 8, 0.32, 6.72),  # three times seven windows of sixteen answers
        (10.0, 32, 15 / 21, 15.0),  # five times as long at most, which is not enough for 64 answers
        (20.0, 1, 5.25 / 21, 5.25),  # five answers a window, for a median
    ],
)
def test_windows_are_longer_than_a_queue_remembers(per_s: float, in_flight: int, window_s: float, run_s: float) -> None:
    length = replace(SMOKE, least_requests=24, least_passes=2, rounds=3)
    found = length.at(per_s, num_clients=in_flight)
    assert (found.window_s, found.run_s) == pytest.approx((window_s, run_s))


def test_a_slow_contender_is_asked_for_as_long_as_its_requests_need(generator: Generator) -> None:
    contender = Contender(name="slow", target=Slow(EACH_S), supply=Numbered())
    length = replace(SMOKE, least_requests=24)
    results = Stand(generator, contender, BenchSettings(), length=length).run(["single"])
    (found,) = results.measurements
    assert found.window_s > SMOKE.window_s
    assert (found.num_warm_up + len(found.windows)) * found.window_s > length.run_s


def test_a_bound_that_no_rate_could_keep_ends_the_search_for_one(generator: Generator) -> None:
    contender = Contender(name="slow", target=Slow(EACH_S), supply=Numbered())
    settings = BenchSettings(bound_ms=1e3 * EACH_S / 2, num_clients=1)
    results = Stand(generator, contender, settings, length=replace(BRIEF, most_probes=10)).run(["server"])
    assert results.highest is None
    (bracket,) = results.brackets
    assert bracket.num_probes < 6


def test_a_bound_may_be_a_multiple_of_what_lone_requests_take(generator: Generator) -> None:
    contender = Contender(name="slow", target=Slow(EACH_S), supply=Numbered())
    settings = BenchSettings(bound_ms=1e3 * EACH_S / 2, bound_factor=10, num_clients=1)  # `bound_ms` could not be kept
    results = Stand(generator, contender, settings, length=BRIEF).run(["server"])
    lone = next(each for each in results.measurements if each.scenario == "single")
    assert results.bound_ms == pytest.approx(10 * lone.latency_ms(0.5).value)
    assert results.bound_ms > 10 * 1e3 * EACH_S * 0.99
    assert results.highest is not None


def test_a_rate_that_is_not_confirmed_is_left_in_growing_steps(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that has become half as fast since the search."""

    def kept(found: Measurement, _bound_ms: float) -> bool:
        return (found.offered_per_s or 0.0) <= (8.0 if found.scenario == "server" else 16.0)

    monkeypatch.setattr(latency, "keeps_bound", kept)
    length = replace(BRIEF, rate_tolerance=0.25, most_probes=10)
    contender = Contender(name="slowing", target=Slow(EACH_S), supply=Numbered())
    results = Stand(generator, contender, BenchSettings(num_clients=1), length=length).run(["server"])
    (bracket,) = results.brackets
    assert bracket.passed is not None
    assert results.highest is not None
    steps = [each.offered_per_s for each in results.probes if each.scenario == "server"]
    assert steps == pytest.approx([bracket.passed / by for by in (1.0, 1.25, 1.25 * 1.5)][: len(steps)])
    assert results.highest.kept == pytest.approx(bracket.passed / [1.25, 1.25 * 1.5, 1.25 * 1.5 * 2][len(steps) - 1])
    assert results.highest.refused == steps[-1]
    assert 4.0 < results.highest.kept <= 8.0


@pytest.mark.parametrize(("most_probes", "searches"), [(10, 3), (2, 2)])
def test_a_rate_is_searched_in_rounds_while_there_is_time(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, most_probes: int, searches: int
) -> None:
    """Two searches of two probes are more than half of three times two."""
    monkeypatch.setattr(latency, "keeps_bound", lambda found, _: found.offered_per_s <= 16.0)
    length = replace(BRIEF, rounds=3, rate_tolerance=0.3, most_probes=most_probes)
    contender = Contender(name="ours", target=Slow(EACH_S), supply=Numbered())
    results = Stand(generator, contender, BenchSettings(num_clients=1), length=length).run(["server"])
    found = [each.passed for each in results.brackets if each.passed is not None]
    assert len(found) == len(results.brackets) == searches
    assert results.highest is not None
    assert results.highest.searched == tuple(found)
    assert results.highest.kept == pytest.approx(geometric_mean(found))
    assert (results.highest.refused is None) == any(each.failed is None for each in results.brackets)
    firsts = list(itertools.accumulate((each.num_probes for each in results.brackets), initial=0))[1:-1]
    assert [results.probes[at].offered_per_s for at in firsts] == found[:-1]  # begun where the last one ended


def test_rates_are_searched_in_turns_when_all_else_is_known(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, str]] = []
    monkeypatch.setattr(Stand, "attempt", lambda stand, step: steps.append((stand.results.contender, step)))
    stands = [
        Stand(generator, Contender(name=name, target=Slow(EACH_S), supply=Numbered()), BenchSettings(), length=each)
        for name, each in (("one", replace(SMOKE, rounds=3)), ("other", replace(SMOKE, rounds=2)))
    ]
    run_in_turns(stands, ["server", "overload"])
    one, other = ([(name, part) for name in ("one", "other")] for part in ("saturation", "search"))
    ends = [(name, scenario) for scenario in ("server", "overload") for name in ("one", "other")]
    assert steps == [*one, *one[::-1], one[0], *other, *other[::-1], other[0], *ends]


def test_steady_loads_are_carried_out_in_rounds_and_in_turns(generator: Generator) -> None:
    length = replace(BRIEF, run_s=0.6, rounds=3)
    supplies = {name: Numbered() for name in ("one", "other")}
    stands = [
        Stand(generator, Contender(name=name, target=Slow(EACH_S), supply=supply), BenchSettings(), length=length)
        for name, supply in supplies.items()
    ]
    run_in_turns(stands, ["single", "offline"])
    for stand in stands:
        assert stand.results.problem is None
        assert [each.scenario for each in stand.results.measurements] == ["single", "offline"]
        for found in stand.results.measurements:
            assert len(found.rounds) == 3
            assert found.num_answered == sum(window.latencies.num for windows in found.rounds for window in windows)
        assert all(found.objections == [] or "late" in found.objections[0] for found in stand.results.measurements)
    for supply in supplies.values():
        assert len(supply.taken) == 8  # a pilot each, and three rounds


class Exhausted(Numbered):
    """Has no more requests after so many times."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def take(self, num: int, *, each: int = 1) -> list[bytes]:
        """As long as there are some."""
        if len(self.taken) >= self._most:
            raise CatalogueError("requests", got="no more", wanted="more", fix="Bring some.")
        return super().take(num, each=each)


def test_a_load_that_cannot_be_carried_out_leaves_the_others_their_rounds(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is found from it is not looked for."""

    def unable(stand: Stand, load: latency.Steady, **kinds: int) -> Measurement:
        if load == "saturation":
            raise latency._Unable("saturation: no")
        return closed(stand, load, **kinds)

    closed = Stand._closed
    monkeypatch.setattr(Stand, "_closed", unable)
    length = replace(BRIEF, run_s=0.6, rounds=3)
    contender = Contender(name="ours", target=Slow(EACH_S), supply=Numbered())
    results = Stand(generator, contender, BenchSettings(), length=length).run(["single", "server"])
    assert results.problem == "saturation: no"
    (single,) = results.measurements
    assert len(single.rounds) == 3
    assert results.highest is None


def test_what_ends_in_a_later_round_is_partial(generator: Generator) -> None:
    """A pilot and one round have had requests."""
    length = replace(BRIEF, run_s=0.6, rounds=3)
    contender = Contender(name="ours", target=Slow(EACH_S), supply=Exhausted(2))
    results = Stand(generator, contender, BenchSettings(), length=length).run(["single"])
    assert "no more" in str(results.problem)
    (found,) = results.measurements
    assert found.objections == ["partial: 1 of 3 rounds"]


def test_server_and_overload_find_what_they_need_in_steady_loads(generator: Generator) -> None:
    contender = Contender(name="ours", target=Slow(EACH_S), supply=Numbered())
    bound, factor = (
        Stand(generator, contender, BenchSettings(bound_factor=each), length=SMOKE) for each in (None, 10.0)
    )
    assert bound.needs(["server"]) == {"saturation", "search"}
    assert factor.needs(["overload"]) == {"single", "saturation"}
    assert factor.needs(["multi", "offline"]) == {"offline"}  # of one sequence a request there is no multi


def test_what_answers_nothing_ends_at_the_pilot(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_LONG_PILOT_S", 0.2)
    contender = Contender(name="silent", target=Refusing(), supply=Numbered())
    results = Stand(generator, contender, BenchSettings(), length=SMOKE).run(["single", "offline"])
    assert results.measurements == []
    assert "nothing was answered" in str(results.problem)
    assert "not today" in str(results.problem)
