"""How fast is what is served? The scenarios of MLPerf Inference, and overload, on each level of the line.

Their rules (Reddi et al., MLPerf Inference Benchmark, ISCA 2020, section IV) where they fit; differences are told in
the report. Every measurement uses requests that no other one used.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from skillserve.console import talk
from skillserve.errors import ServerUnreachable, SkillserveError
from skillserve.settings import BenchSettings
from skillserve_bench.lengths import LENGTHS, Length
from skillserve_bench.load.generator import COMPLETED, Generator
from skillserve_bench.load.schedule import ClosedLoop, Load, OpenLoop, Phase
from skillserve_bench.measurement import Contender, Measurement, measure
from skillserve_bench.overload import Overload, weigh_overload
from skillserve_bench.rate_search import WIDE, Bracket, HighestRate, search_rate
from skillserve_bench.settling import LEAST_ANSWERS

__all__ = [
    "MOST_CONFIRMATIONS",
    "OVERLOADS",
    "SCENARIOS",
    "STEADY",
    "WANTED_SHARE",
    "Results",
    "Scenario",
    "Stand",
    "keeps_bound",
    "run_in_turns",
]

Scenario = Literal["single", "multi", "offline", "server", "overload"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
Steady = Literal["single", "multi", "offline", "saturation"]
"""Closed loops, whose load is the same all the time; `saturation` is what `server` and `overload` find rates from."""
STEADY: tuple[Steady, ...] = get_args(Steady)
Part = Steady | Literal["search"]
"""What is carried out in rounds: a steady load, or a search for the rate of `server`."""

OVERLOADS = (1.5, 2.0)
_BESIDE = 0.5
"""Share of the saturation rate before and after an overload."""
_PILOT_S, _LONG_PILOT_S = 1.0, 10.0
_SPARE = 2.0
"""Requests that a closed loop is given, relative to those that the pilot lets expect."""
_LEAST = 50
_MORE, _MORE_TRIES = 4, 3
"""Times as many requests for a closed loop that was out of them before its time, and how often."""
_ALONE = 0.5
"""Requests in the server at once, on average, below which they take what a lone one takes."""
_START = 0.7
"""Where the first search for a rate begins, relative to the saturation rate."""
_NARROW_STEPS = 3
"""So many tolerances are a step of the searches after it."""
WANTED_SHARE = 0.99
MOST_CONFIRMATIONS = 4


@dataclass(kw_only=True)
class Results:
    """What was measured on one contender; grows, so that a run that is ended keeps what it has."""

    contender: str
    bound_ms: float
    """Bound on p99 in `server`, and on what is useful in `overload`."""
    measurements: list[Measurement] = field(default_factory=list)
    brackets: list[Bracket] = field(default_factory=list)
    """Where searches for a rate ended."""
    highest: HighestRate | None = None
    """What keeps the bound in `server`; None if no rate was confirmed."""
    probes: list[Measurement] = field(default_factory=list)
    saturation_per_s: float | None = None
    """Requests a second of one sequence each that saturated clients get."""
    overloads: list[Overload] = field(default_factory=list)
    problem: str | None = None
    """Why not everything was measured."""

    @property
    def bound(self) -> str:
        """The bound as reports tell it."""
        return f"{round(self.bound_ms, 1):g} ms"


def keeps_bound(found: Measurement, bound_ms: float) -> bool:
    """Whether a run kept the bound of the scenario `server`."""
    return not found.objections and found.share_within(bound_ms) >= WANTED_SHARE


class _Ended(Exception):
    """A run ended before its time: what was measured stands, and nothing more is."""


class _Unable(Exception):
    """A contender that cannot do one load: it is left out of that one, and of what is found from it."""


class Stand:
    """One contender on the test stand."""

    def __init__(
        self, generator: Generator, contender: Contender, settings: BenchSettings, *, length: Length | None = None
    ) -> None:
        self._generator, self._contender, self._settings = generator, contender, settings
        self._length: Length = length or LENGTHS[settings.length]
        self._seeds = itertools.count(settings.seed)  # one for each schedule
        self._times: dict[Steady, list[Measurement]] = {}
        self._paces: dict[Steady, float] = {}
        """Requests a second, as a pilot saw them."""
        self._nums: dict[Steady, int] = {}
        """Requests that a round is given."""
        self._searched_s = 0.0
        self._unable: set[Part | Scenario] = set()
        self._stopped = False
        self.results = Results(contender=contender.name, bound_ms=settings.bound_ms)

    def run(self, scenarios: Sequence[Scenario]) -> Results:
        """Carry the scenarios out on this contender alone, see `run_in_turns`."""
        run_in_turns([self], scenarios)
        return self.results

    @property
    def num_rounds(self) -> int:
        """How often steady loads are carried out, and a rate is searched."""
        return self._length.rounds

    def needs(self, scenarios: Sequence[Scenario]) -> set[Part]:
        """What scenarios consist of, or find bounds and rates from, and is carried out in rounds."""
        found: set[str] = set(scenarios)
        if {"server", "overload"} & found:
            found |= {"saturation"} if self._settings.bound_factor is None else {"saturation", "single"}
        parts: set[Part] = {each for each in STEADY if each in found and (each != "multi" or self._contender.multi > 1)}
        return parts | {"search"} if "server" in found else parts

    def attempt(self, step: Part | Scenario) -> None:
        """One round of what is carried out in rounds, or a whole scenario of another kind.

        An error or Ctrl-C ends what is measured here; the results say why, and stand. Where only one steady load cannot
        be carried out, the others are.
        """
        if self._stopped or self._generator.interrupted or step in self._unable:
            return
        try:
            match step:
                case "search" | "server" | "overload" if self.results.problem:
                    return
                case "search":
                    self._search()
                case "server":
                    self._server()
                case "overload":
                    self._overload()
                case _:
                    self._steady(step)
        except (_Ended, _Unable, SkillserveError) as error:
            self.results.problem = self.results.problem or str(error)
            if step in STEADY and not isinstance(error, _Ended | ServerUnreachable):
                self._unable.add(step)
            else:
                self._stopped = True

    def _steady(self, load: Steady) -> None:
        """One more round of a closed loop; what bounds and rates are found from is known ever better."""
        num_clients = 1 if load in ("single", "multi") else self._settings.num_clients
        each = {"multi": self._contender.multi, "offline": self._contender.bulk}.get(load, 1)
        times = self._times.setdefault(load, [])
        times.append(self._closed(load, num_clients=num_clients, each=each))
        found = Measurement.joined(times, wanted=self._length.rounds)
        measurements = self.results.measurements
        at = next((i for i, each in enumerate(measurements) if each.scenario == load), len(measurements))
        measurements[at : at + 1] = [found]
        self._checked(times[-1])
        factor = self._settings.bound_factor
        if load == "single" and factor is not None and found.num_answered:
            self.results.bound_ms = factor * found.latency_ms(0.5).value
        if load == "saturation" and found.per_s.value > 0:  # not nan, either
            self.results.saturation_per_s = found.per_s.value

    def _search(self) -> None:
        """One more search for a rate, from the last one that passed, if there is one, and time for it."""
        brackets = self.results.brackets
        start, step = self._saturation * _START, WIDE
        if brackets:
            passed = [each.passed for each in brackets if each.passed is not None]
            if not passed or self._searched_s >= self._length.searching_s:
                return
            start, step = passed[-1], (1 + self._length.rate_tolerance) ** _NARROW_STEPS
        tolerance, most_probes = self._length.rate_tolerance, self._length.most_probes
        brackets.append(search_rate(self._probe, start=start, tolerance=tolerance, most_probes=most_probes, step=step))

    def _server(self) -> None:
        """Confirm what searches found on average with a longer run; while that fails, go down in growing steps."""
        highest = HighestRate.of(self.results.brackets)
        if highest is None:
            return
        for i in range(MOST_CONFIRMATIONS):
            confirmed = self._open("server", [Phase(highest.kept, self._judging(highest.kept).run_s)])
            if keeps_bound(confirmed, self.results.bound_ms):
                self.results.highest = highest
                self.results.measurements.append(confirmed)
                return
            self.results.probes.append(confirmed)
            highest = highest.lower(1 + 2**i * self._length.rate_tolerance)

    def _overload(self) -> None:
        saturation = self._saturation
        seconds = self._length.at(_BESIDE * saturation).overload_s
        for factor in OVERLOADS:
            phases = [
                Phase(_BESIDE * saturation, seconds),
                Phase(factor * saturation, seconds),
                Phase(_BESIDE * saturation, 3 * seconds),
            ]
            found = self._open(f"overload {factor:g}x", phases, whole=True)
            self.results.measurements.append(found)
            self.results.overloads.append(
                weigh_overload(
                    found,
                    factor=factor,
                    begin_s=seconds,
                    end_s=2 * seconds,
                    wanted_share=WANTED_SHARE,
                    bound_ms=self.results.bound_ms,
                )
            )

    def _probe(self, rate: float) -> bool | None:
        """Whether a rate keeps the bound; None where no lower one could."""
        seconds = self._judging(rate).probe_s
        found = self._open("probe", [Phase(rate, seconds)])
        self._searched_s += seconds
        self.results.probes.append(found)
        if keeps_bound(found, self.results.bound_ms):
            return True
        median_ms = found.latency_ms(0.5).value if found.num_answered else 0.0
        alone = rate * median_ms / 1e3 < _ALONE  # requests hardly meet: what they take, they take alone
        return None if alone and median_ms > self.results.bound_ms else False

    def _judging(self, rate: float) -> Length:
        """Long enough to tell whether a rate keeps the bound."""
        return self._length.at(rate, bound_s=self.results.bound_ms / 1e3)

    @property
    def _saturation(self) -> float:
        """Requests a second that saturated clients got; who asks for it needs a bound, too, which is found here."""
        if self.results.saturation_per_s is None:
            raise _Ended("saturation: too few answers to find a rate from")
        lone = self._times.get("single", [])
        if self._settings.bound_factor is not None and not any(each.num_answered for each in lone):
            raise _Ended("single: no answer to find a bound from")
        return self.results.saturation_per_s

    def _closed(self, scenario: Steady, *, num_clients: int, each: int) -> Measurement:
        """A closed loop for one round, with as many requests as a pilot lets expect, and some to spare."""
        if scenario not in self._paces:
            self._paces[scenario] = self._pilot(num_clients, each)
        per_s = self._paces[scenario]
        length = self._length.at(per_s, num_clients=num_clients)
        seconds = length.run_s / length.rounds
        load = ClosedLoop(num_clients=num_clients, seconds=seconds)
        num = self._nums.get(scenario, max(round(per_s * seconds * _SPARE), _LEAST))
        found = self._measured(scenario, load, self._contender.supply.take(num, each=each), length, each=each)
        for _ in range(_MORE_TRIES):
            if not found.used_up:
                break
            num *= _MORE  # the pilot met a server, or a machine, that was slower than it is
            found = self._measured(scenario, load, self._contender.supply.take(num, each=each), length, each=each)
        self._nums[scenario] = num
        return found

    def _pilot(self, num_clients: int, each: int) -> float:
        """Requests a second of a closed loop, roughly; more than 0. A second one is longer, if the first saw little.

        A load that was ended, or got no answer at all, ends the measurement.
        """
        error: SkillserveError | None = None
        for seconds in (_PILOT_S, _LONG_PILOT_S):
            pilot = self._generator.drive(
                self._contender.target,
                self._contender.supply.take(_LEAST, each=each),
                ClosedLoop(num_clients=num_clients, seconds=seconds),
                window_s=self._length.window_s,
            )
            error = error or pilot.error
            if pilot.ended != COMPLETED:
                raise _Ended(_ending("pilot", pilot.ended, error))
            if pilot.num_answered >= LEAST_ANSWERS or not self._length.least_requests:
                break
        else:
            if not pilot.num_answered:
                raise _Unable(f"pilot: nothing was answered in {_LONG_PILOT_S:g} s ({error or 'no error'})")
        return max(pilot.num_answered, 1) / pilot.wall_s

    def _open(self, scenario: str, phases: Sequence[Phase], *, whole: bool = False) -> Measurement:
        load = OpenLoop.draw(phases, arrivals=self._settings.arrivals, seed=next(self._seeds))
        payloads = self._contender.supply.take(len(load.offsets))
        length = self._length.at(min(phase.per_s for phase in phases))
        return self._checked(self._measured(scenario, load, payloads, length, whole=whole))

    def _measured(
        self,
        scenario: str,
        load: Load,
        payloads: Sequence[bytes],
        length: Length,
        *,
        each: int = 1,
        whole: bool = False,
    ) -> Measurement:
        talk(f"{self._contender.name}, {scenario}: {load}, {load.seconds:g} s")
        return measure(
            self._generator,
            self._contender,
            load,
            payloads,
            scenario=scenario,
            window_s=length.window_s,
            seed=self._settings.seed,
            each=each,
            whole=whole,
        )

    def _checked(self, found: Measurement) -> Measurement:
        if found.ended != COMPLETED:
            if not any(found is each for each in self.results.measurements):
                self.results.measurements.append(found)
            raise _Ended(_ending(found.scenario, found.ended, found.first_error))
        return found


def _ending(load: str, ended: str, error: object) -> str:
    """Why a load ended before its time."""
    return f"{load}: {ended}" + (f" ({error})" if error else "")


def run_in_turns(stands: Sequence[Stand], scenarios: Sequence[Scenario]) -> None:
    """Carry scenarios out on contenders in turns: what has rounds, every other one backwards, then the rest.

    Rates are searched when all that bounds and beginnings are found from is known.
    """
    parts: list[tuple[Part, ...]] = [STEADY, ("search",)]
    for together in parts:
        for number in range(max(stand.num_rounds for stand in stands)):
            for part in together:
                for stand in stands[:: -1 if number % 2 else 1]:
                    if part in stand.needs(scenarios) and number < stand.num_rounds:
                        stand.attempt(part)
    for scenario in ("server", "overload"):
        for stand in stands:
            if scenario in scenarios:
                stand.attempt(scenario)
