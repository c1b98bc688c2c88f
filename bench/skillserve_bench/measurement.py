"""One load on one contender, measured from all sides: the clients', the server's own, and the machine's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from itertools import chain
from typing import Any, Protocol

import numpy as np

from skillserve.errors import SkillserveError
from skillserve.tensors import Role
from skillserve_bench.gpus import GpuMeter, GpuUsage
from skillserve_bench.intervals import Estimate, mean_estimate, quantile_estimate
from skillserve_bench.load.generator import COMPLETED, Generator
from skillserve_bench.load.histogram import Histogram
from skillserve_bench.load.schedule import ClosedLoop, Load, OpenLoop
from skillserve_bench.load.search import SearchTarget
from skillserve_bench.load.target import Target
from skillserve_bench.load.windows import Window
from skillserve_bench.processor import Meter, Usage, tree_memory_mib
from skillserve_bench.settling import num_warm_up
from skillserve_client import Statistics

__all__ = ["MOST_LAG_MS", "QUANTILES", "Contender", "Measurement", "Supplies", "measure", "per_window", "within"]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
MOST_LAG_MS = 1.0
"""A run whose requests start later than scheduled by more than this, at p99, did not send the load it claims."""

_CLOCK_STEP_S = 0.1
"""Smaller differences of the clocks are their drift."""


class Supplies(Protocol):
    """Where payloads come from: `Supply`, or what a peer reads."""

    def take(self, num: int, *, each: int = 1) -> list[bytes]:
        """The next `num` requests of `each` sequences, none of which was given out before."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Something that answers requests: a model on a server, a whole search, or a peer."""

    name: str
    target: Target
    supply: Supplies
    server_pid: int | None = None
    """The server's process, if it runs on this machine and is known."""
    statistics: Mapping[Role, Callable[[], Statistics]] = field(default_factory=dict)
    """The server's own view, by model; empty for a peer that has none."""
    multi: int = 1
    """Sequences of a request in MultiStream; 1: there is no such thing."""
    bulk: int = 1
    """Sequences of a request in bulk work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a run says, warm-up left out."""

    scenario: str
    contender: str
    load: str
    offered_per_s: float | None
    """Rate of an open loop's schedule; None for a closed loop, which has none."""
    each: int
    """Sequences of a request."""
    ended: str
    """`completed`, or why it ended before: then this is a part of a run."""
    settled: bool
    """Whether three windows in a row agreed, in every round; if not, a third of it was left out all the same."""
    used_up: bool
    """Whether a closed loop with a duration was out of requests before its time."""
    num_warm_up: int
    """Windows left out."""
    rounds: Sequence[Sequence[Window]]
    """Windows of each time that the load was carried out."""
    wanted_rounds: int = 1
    """How often it was to be."""
    window_s: float
    lag_p99_ms: float
    """Of the whole run, warm-up included; of the worst round."""
    busiest: float
    """Share of one core that the busiest load process used."""
    num_workers: int
    clock_step_s: float
    usage: Usage
    memory_mib: float | None
    """Resident memory of the server at the end, of the largest round; None where its processes are not known."""
    gpu: GpuUsage | None
    server: Mapping[Role, Statistics]
    """Of the whole run, warm-up included."""
    first_error: str | None
    seed: int

    @classmethod
    def joined(cls, times: Sequence[Measurement], *, wanted: int) -> Measurement:
        """One load that was carried out several times, `wanted` times if all went well, as one measurement."""
        first = times[0]
        servers = [each.server for each in times]
        memory = [each.memory_mib for each in times if each.memory_mib is not None]
        return replace(
            first,
            ended=next((each.ended for each in times if each.ended != COMPLETED), COMPLETED),
            settled=all(each.settled for each in times),
            used_up=any(each.used_up for each in times),
            num_warm_up=sum(each.num_warm_up for each in times),
            rounds=tuple(chain.from_iterable(each.rounds for each in times)),
            wanted_rounds=wanted,
            lag_p99_ms=float(np.fmax.reduce([each.lag_p99_ms for each in times])),
            busiest=max(each.busiest for each in times),
            clock_step_s=max((each.clock_step_s for each in times), key=abs),
            usage=Usage.mean([each.usage for each in times]),
            memory_mib=max(memory, default=None),
            gpu=GpuUsage.mean([each.gpu for each in times if each.gpu is not None]),
            server={
                role: reduce(Statistics.plus, [server[role] for server in servers if role in server])
                for role in dict.fromkeys(chain(*servers))
            },
            first_error=next((each.first_error for each in times if each.first_error), None),
        )

    @property
    def windows(self) -> list[Window]:
        """Those of all rounds."""
        return list(chain(*self.rounds))

    @property
    def latencies(self) -> list[list[Histogram]]:
        """By round and window."""
        return [[window.latencies for window in windows] for windows in self.rounds]

    @property
    def num_answered(self) -> int:
        """Requests answered."""
        return sum(window.latencies.num for window in self.windows)

    @property
    def num_scheduled(self) -> int:
        """Requests that should have started."""
        return sum(window.num_scheduled for window in self.windows)

    @property
    def failures(self) -> dict[str, int]:
        """Error → requests."""
        return dict(sum((Counter(window.failures) for window in self.windows), Counter()))

    def latency_ms(self, share: float) -> Estimate:
        """A quantile of the latencies of answered requests."""
        return quantile_estimate(self.latencies, share, seed=self.seed)

    @property
    def merged(self) -> Histogram:
        """All latencies."""
        return Histogram.merged(window.latencies for window in self.windows)

    @property
    def greatest_ms(self) -> float:
        """The longest latency."""
        return self.merged.greatest_us / 1e3

    @property
    def rates(self) -> list[list[float]]:
        """Sequences answered a second, by round and window."""
        return [[rate * self.each for rate in rates] for rates in per_window(self.rounds, self.window_s)]

    @property
    def per_s(self) -> Estimate:
        """Sequences answered a second."""
        return mean_estimate(self.rates, seed=self.seed)

    def share_within(self, bound_ms: float) -> float:
        """Share of all scheduled requests that were answered within a bound; what failed was not."""
        return within(self.windows, bound_ms) / self.num_scheduled if self.num_scheduled else 0.0

    @property
    def split(self) -> dict[Role, dict[str, Any]]:
        """Where the server's time went, by model, per request, as it says itself."""
        return {role: _split(statistics) for role, statistics in self.server.items()}

    @property
    def objections(self) -> list[str]:
        """Why the figures are not what the scenario asks for; empty if they are."""
        found = []
        if self.ended != COMPLETED:
            found.append(f"partial: {self.ended}")
        elif len(self.rounds) < self.wanted_rounds:
            found.append(f"partial: {len(self.rounds)} of {self.wanted_rounds} rounds")
        if self.lag_p99_ms > MOST_LAG_MS:
            found.append(
                f"invalid: requests started {self.lag_p99_ms:.2f} ms late at p99 (limit {MOST_LAG_MS:g} ms), so the "
                f"load generator could not keep the schedule; its busiest process used {self.busiest:.0%} of a core; "
                "the right to real-time priority (CAP_SYS_NICE) helps, or another machine to send from"
            )
        if not self.num_answered:
            found.append("nothing was answered")
        return found

    @property
    def remarks(self) -> list[str]:
        """What a reader should know, though the figures stand."""
        found = []
        if not self.settled:
            once = len(self.rounds) == 1
            found.append(f"{'never' if once else 'not always'} settled: no three windows in a row agreed within 10 %")
        if self.used_up:
            found.append("out of requests before its time: the run is shorter than its length says")
        if self.failures:
            kinds = ", ".join(f"{num} {kind}" for kind, num in sorted(self.failures.items()))
            found.append(f"failed: {kinds}" + (f" (first: {self.first_error})" if self.first_error else ""))
        if abs(self.clock_step_s) > _CLOCK_STEP_S:
            found.append(
                f"the wall clock was set by {self.clock_step_s:+.1f} s meanwhile; latencies are taken from a clock "
                "that nobody sets"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """As the JSON report has it; `windows` hold all that `compare` needs."""
        answered = self.num_answered > 0
        return {
            "scenario": self.scenario,
            "contender": self.contender,
            "load": self.load,
            "offered_per_s": self.offered_per_s,
            "sequences_per_request": self.each,
            "valid": not self.objections,
            "objections": self.objections,
            "remarks": self.remarks,
            "num_scheduled": self.num_scheduled,
            "num_answered": self.num_answered,
            "failures": self.failures,
            "latency_ms": {name: asdict(self.latency_ms(share)) for name, share in QUANTILES.items()}
            if answered
            else {},
            "greatest_ms": self.greatest_ms,
            "sequences_per_s": asdict(self.per_s) if self.rates else None,
            "lag_p99_ms": None if np.isnan(self.lag_p99_ms) else self.lag_p99_ms,
            "busiest_load_process": self.busiest,
            "num_load_processes": self.num_workers,
            "warm_up_windows": self.num_warm_up,
            "settled": self.settled,
            "cores": asdict(self.usage),
            "server_memory_mib": self.memory_mib,
            "gpu": None if self.gpu is None else asdict(self.gpu),
            "server": self.split,
            "window_s": self.window_s,
            "windows": [window.to_dict() for window in self.windows],
            "windows_of_rounds": [len(windows) for windows in self.rounds],
        }


def measure(
    generator: Generator,
    contender: Contender,
    load: Load,
    payloads: Sequence[bytes],
    *,
    scenario: str,
    window_s: float,
    seed: int,
    each: int = 1,
    whole: bool = False,
) -> Measurement:
    """Drive a load and look at it from all sides; with `whole` there is no warm-up to leave out."""
    before = {role: ask() for role, ask in contender.statistics.items()}
    pid = contender.server_pid
    meter = Meter(pid)
    with GpuMeter() as gpus:
        run = generator.drive(contender.target, payloads, load, window_s=window_s)
    searches = isinstance(contender.target, SearchTarget)
    usage = meter.usage(load_s=run.cpu_s, search_s=run.beside_s if searches else None)
    server: dict[Role, Statistics] = {}
    with suppress(SkillserveError):  # it went away, and what it knew with it; the run says so
        server = {role: ask().since(before[role]) for role, ask in contender.statistics.items()}
    # Behind the last window in which requests started there are only late answers.
    windows = run.windows[: 1 + max((i for i, window in enumerate(run.windows) if window.num_scheduled), default=-1)]
    warm_up = 0 if whole else num_warm_up(windows)
    left_out = len(windows) // 3 if warm_up is None else warm_up
    return Measurement(
        scenario=scenario,
        contender=contender.name,
        load=str(load),
        offered_per_s=load.per_s if isinstance(load, OpenLoop) else None,
        each=each,
        ended=run.ended,
        settled=warm_up is not None,
        used_up=run.ended == COMPLETED
        and isinstance(load, ClosedLoop)
        and load.seconds is not None
        and sum(window.num_scheduled for window in run.windows) == len(payloads),
        num_warm_up=left_out,
        rounds=(windows[left_out:],),
        window_s=window_s,
        lag_p99_ms=Histogram.merged(window.lags for window in run.windows).quantile_us(0.99) / 1e3,
        busiest=run.busiest,
        num_workers=generator.num_workers,
        clock_step_s=run.clock_step_s,
        usage=usage,
        memory_mib=None if pid is None else tree_memory_mib(pid),
        # Those of this machine are the server's only if the server is.
        gpu=gpus.usage if pid is not None else None,
        server=server,
        first_error=None if run.error is None else str(run.error),
        seed=seed,
    )


def per_window(rounds: Sequence[Sequence[Window]], window_s: float) -> list[list[float]]:
    """Requests answered a second, by round and window.

    The last window in which some started is not whole and left out, and so is a round that has no other.
    """
    found = []
    for windows in rounds:
        last = max((i for i, window in enumerate(windows) if window.num_scheduled), default=0)
        found.append([window.num_done / window_s for window in windows[:last]])
    return [each for each in found if each]


def within(windows: Sequence[Window], bound_ms: float) -> int:
    """Requests of these windows that were answered within a bound, ms from their scheduled start."""
    num = 0
    for window in windows:
        values, counts = window.latencies.counts()
        num += int(counts[values <= bound_ms * 1e3].sum())
    return num


def _split(statistics: Statistics) -> dict[str, Any]:
    """One model's part of `Measurement.split`."""
    num = max(statistics.num_requests, 1)
    return {
        "num_requests": statistics.num_requests,
        "num_executions": statistics.num_executions,
        "queue_ms": statistics.queue_ms / num,
        "input_ms": statistics.input_ms / num,
        "inference_ms": statistics.compute_ms / num,
        "output_ms": statistics.output_ms / num,
        "mean_batch": statistics.num_requests / max(statistics.num_executions, 1),
        "batch_sizes": {str(size): num for size, num in statistics.batch_sizes.items()},
    }
