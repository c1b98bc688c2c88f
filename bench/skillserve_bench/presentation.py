"""Latency measurements in words, tables and charts, for a reader who has a minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from skillserve.settings import BenchSettings
from skillserve_bench.beside import Beside, beside_figures, beside_method, beside_summary, beside_tables
from skillserve_bench.charts import charts_of
from skillserve_bench.intervals import CONFIDENCE, MIN_ROUNDS, MIN_WINDOWS
from skillserve_bench.lengths import LENGTHS, MOST_STRETCH, Length
from skillserve_bench.levels import IndexBuild
from skillserve_bench.measurement import MOST_LAG_MS, QUANTILES, Measurement
from skillserve_bench.report import Findings, Table, cores
from skillserve_bench.scenarios.latency import MOST_CONFIRMATIONS, OVERLOADS, WANTED_SHARE, Results, keeps_bound
from skillserve_bench.settling import AGREEING, TOLERANCE

__all__ = ["Material", "findings_of"]

_SEARCHED_BESIDE = (
    "A whole search is carried out in a process of its own beside each load process, as a peer's daemon does it; the "
    "share of the cores that it uses stands before the server's."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """All that a report of latencies is made of."""

    server: str
    results: Sequence[Results]
    index: IndexBuild | None
    sources: Sequence[str]
    """Where the requests came from, one line a level."""
    lens: Mapping[str, Sequence[int]]
    """By model, tokens of the sequences that were sent."""
    settings: BenchSettings
    interrupted: bool = False
    problems: Sequence[str] = field(default_factory=tuple)
    beside: Beside | None = None
    """Peers; None where none were invited."""

    @property
    def measurements(self) -> list[Measurement]:
        """Those that stand for a scenario; probes do not."""
        return [each for results in self.results for each in results.measurements]

    @property
    def objections(self) -> list[str]:
        """Everything that keeps figures from being what they are called."""
        of_runs = [
            f"{each.contender} {each.scenario}: {text}" for each in self.measurements for text in each.objections
        ]
        ended = [f"{each.contender}: {each.problem}" for each in self.results if each.problem]
        return list(dict.fromkeys([*self.problems, *ended, *of_runs]))


def findings_of(material: Material) -> Findings:
    """The report; not passed where a run is partial or invalid, or something could not be measured."""
    objections = material.objections
    length = material.settings.length
    return Findings(
        name="latency",
        title="Latency and throughput as served" + (", a smoke run: no figures to quote" if length == "smoke" else ""),
        passed=not objections and not material.interrupted,
        summary=[
            *(["PARTIAL: interrupted; what was measured until then stands."] if material.interrupted else []),
            *(f"NOT VALID: {objection}" for objection in objections),
            *(beside_summary(material.beside, material.results, material.settings) if material.beside else []),
            *(line for results in material.results for line in _outcome(results)),
            *([_index_line(material.index)] if material.index else []),
        ],
        tables=[table for table in _tables(material) if table.rows],
        draw=partial(charts_of, material.results, lens=material.lens, settings=material.settings),
        method=_method(material),
        server=material.server,
        figures=_figures(material),
    )


def _outcome(results: Results) -> list[str]:
    by_name = {each.scenario: each for each in results.measurements}
    lines = []
    if (single := by_name.get("single")) and single.num_answered:
        lines.append(
            f"{results.contender}: a lone request takes {single.latency_ms(0.5).text(1)} ms at the median, "
            f"{single.latency_ms(0.9).text(1)} ms at p90."
        )
    if results.highest is not None:
        lines.append(f"{results.contender}: {results.highest.text} requests a second keep p99 within {results.bound}.")
    elif results.probes:
        tried = [
            each.offered_per_s for each in results.probes if each.offered_per_s and keeps_bound(each, results.bound_ms)
        ]
        what = (
            f"up to {max(tried):.4g} requests a second kept p99 once, none confirmed," if tried else "no rate kept p99"
        )
        lines.append(f"{results.contender}: {what} within {results.bound}.")
    lines += [
        f"{results.contender}: offered {each.factor:g} times its saturation rate it gives {each.goodput_per_s:.4g} "
        f"useful answers a second, sheds {each.shed_share:.0%}, and "
        + ("has not" if each.recovery_s is None else "has")
        + f" recovered {each.watched_s if each.recovery_s is None else each.recovery_s:.1f} s after."
        for each in results.overloads
    ]
    return lines


def _index_line(index: IndexBuild) -> str:
    return f"index: {index.num_skills:,} skills embedded and indexed in {index.seconds:.1f} s (once)."


def _tables(material: Material) -> list[Table]:
    found, beside = material.measurements, material.beside
    return [
        *(beside_tables(beside, material.results, material.settings) if beside else []),
        Table(
            title=f"Latency from the scheduled start, ms, with {CONFIDENCE:.0%} intervals",
            columns=["level, scenario", *QUANTILES, "max", "answered", "failed"],
            rows=[
                [
                    _name(each),
                    *(each.latency_ms(share).text(1) for share in QUANTILES.values()),
                    f"{each.greatest_ms:.1f}",
                    f"{each.num_answered:,}",
                    f"{sum(each.failures.values()):,}",
                ]
                for each in found
            ],
        ),
        Table(
            title="Throughput and load",
            columns=[
                "level, scenario",
                "load",
                "sequences/s",
                "lag p99, ms",
                "busiest load process",
                "settled",
                "valid",
            ],
            rows=[
                [
                    _name(each),
                    each.load,
                    each.per_s.text(1) if each.rates else "?",
                    f"{each.lag_p99_ms:.3f}",
                    f"{each.busiest:.0%} of a core",
                    _settled(each),
                    "no" if each.objections else "yes",
                ]
                for each in found
            ],
        ),
        Table(
            title="The server's own view, ms a request",
            columns=[
                "level, scenario",
                "model",
                "queue",
                "input",
                "inference",
                "output",
                "mean batch",
                "cores: client / search + server / others",
                "memory, MiB",
                "GPU",
            ],
            rows=[
                [
                    _name(each),
                    role,
                    *(f"{split[part]:.2f}" for part in ("queue_ms", "input_ms", "inference_ms", "output_ms")),
                    f"{split['mean_batch']:.1f}",
                    cores(each.usage),
                    "?" if each.memory_mib is None else f"{each.memory_mib:.0f}",
                    "none" if each.gpu is None else f"{each.gpu.busy:.0%}, {each.gpu.memory_mib:.0f} MiB",
                ]
                for each in found
                for role, split in each.split.items()
            ],
        ),
        Table(
            title="Overload",
            columns=["level", "offered/s", "useful/s", "shed", "late", "failed otherwise", "recovered after, s"],
            rows=[
                [
                    f"{results.contender}, {each.factor:g}x",
                    f"{each.offered_per_s:.1f}",
                    f"{each.goodput_per_s:.1f}",
                    f"{each.shed_share:.1%}",
                    f"{each.late_share:.1%}",
                    f"{each.failed_share:.1%}",
                    f"not within {each.watched_s:.1f}" if each.recovery_s is None else f"{each.recovery_s:.1f}",
                ]
                for results in material.results
                for each in results.overloads
            ],
        ),
        Table(
            title="Remarks",
            columns=["level, scenario", "remark"],
            rows=[[_name(each), remark] for each in found for remark in each.remarks],
        ),
    ]


def _method(material: Material) -> list[str]:
    settings, length = material.settings, LENGTHS[material.settings.length]
    return [
        (
            f"Length `{settings.length}`: runs of {length.run_s:g} s in windows of {length.window_s:g} s. Warm-up "
            f"lasts until {AGREEING} windows in a row have medians within {TOLERANCE:.0%}, and is left out; where "
            f"none agree, a third is. Where a run would hold fewer than {length.least_requests} requests, or last less "
            f"than {1 / length.rate_tolerance:g} times the bound that it judges, everything takes longer, up to "
            f"{MOST_STRETCH:g} times, in wider windows."
        ),
        *_parts(length),
        (
            "Latency counts from the scheduled start of a request, so a stall is seen by every request that should "
            "have started meanwhile. A closed loop's request is scheduled when its client has its last answer. A run "
            f"is invalid if requests start more than {MOST_LAG_MS:g} ms late at p99. While they keep a schedule, load "
            "processes have real-time priority where the system allows it."
        ),
        (
            f"Intervals are the hull of order statistics, of a bootstrap over windows ({MIN_WINDOWS} or more), and of "
            f"Student's interval of a closed loop's parts ({MIN_ROUNDS} or more); `?` is an end that so few answers do "
            "not bound. A maximum has none."
        ),
        (
            "single: one client, one sequence a request. multi: one client, 20 sequences (pairs) a request. "
            f"saturation: {settings.num_clients} clients, one sequence a request. offline: {settings.num_clients} "
            "clients, requests filled to the client's token budget."
        ),
        (
            f"server: the highest rate of {settings.arrivals} arrivals at which {WANTED_SHARE:.0%} of the scheduled "
            f"requests are answered within {settings.bound}; failures count as late. Bisection from 0.7 of "
            f"saturation, probes of {length.probe_s:g} s, until the bracket is within {length.rate_tolerance:.0%} or "
            f"after {length.most_probes} probes{_again(length)}. What was found (the geometric mean) is confirmed by a "
            f"run of {length.run_s:g} s with another seed, up to {MOST_CONFIRMATIONS} times: "
            f"{length.rate_tolerance:.0%} lower, then by twice as much, and so on. Its interval reaches to what was "
            f"refused above it, and holds Student's interval of {MIN_ROUNDS} searches or more; of fewer it is what "
            "they left open, in one mood of the machine, with no confidence to name."
        ),
        (
            f"overload: {length.overload_s:g} s at {' and '.join(f'{factor:g}' for factor in OVERLOADS)} times the "
            f"saturation rate, between {length.overload_s:g} s and {3 * length.overload_s:g} s at half of it. "
            f"Recovered: {AGREEING} windows in a row with {WANTED_SHARE:.0%} of their requests within the bound."
        ),
        (
            "MLPerf asks for at least 60 s a run and for 24,576 (p90) or 270,336 (p99) requests; here the intervals "
            "say how far fewer carry."
        ),
        *([_SEARCHED_BESIDE] if any(each.usage.search is not None for each in material.measurements) else []),
        f"Seed {settings.seed}: requests, order and arrivals are drawn from it. No request is sent twice.",
        *material.sources,
        *(beside_method(material.beside) if material.beside else []),
    ]


def _figures(material: Material) -> dict[str, Any]:
    return {
        "length": material.settings.length,
        "seed": material.settings.seed,
        "bound_ms": material.settings.bound_ms,
        "bound_factor": material.settings.bound_factor,
        "objections": material.objections,
        "interrupted": material.interrupted,
        "index": None if material.index is None else asdict(material.index),
        "peers": None
        if material.beside is None
        else beside_figures(material.beside, material.results, material.settings),
        "levels": {
            results.contender: {
                "problem": results.problem,
                "bound_ms": results.bound_ms,
                "saturation_per_s": results.saturation_per_s,
                "server_rate_per_s": None if results.highest is None else results.highest.kept,
                "server_refused_per_s": None if results.highest is None else results.highest.refused,
                "searches": [asdict(each) for each in results.brackets],
                "overloads": [asdict(each) for each in results.overloads],
                "measurements": {each.scenario: each.to_dict() for each in results.measurements},
                "probes": [_probe(each, results.bound_ms) for each in results.probes],
            }
            for results in material.results
        },
    }


def _probe(found: Measurement, bound_ms: float) -> dict[str, Any]:
    """A probe, without its windows."""
    whole = found.to_dict()
    del whole["windows"], whole["windows_of_rounds"]
    return {**whole, "share_within_bound": found.share_within(bound_ms)}


def _parts(length: Length) -> list[str]:
    """How closed loops are carried out, where it is not in one piece."""
    if length.rounds == 1:
        return []
    whole = f"{length.least_windows} windows hold {length.least_passes} requests of each client"
    text = f"A closed loop is carried out in {length.rounds} parts, each with its warm-up, other loads in between."
    return [f"{text} It takes longer, too, until {whole}."]


def _again(length: Length) -> str:
    """How often a rate is searched, where it is more than once."""
    if length.rounds == 1:
        return ""
    return (
        f"; then again, up to {length.rounds} times in all, each from where the last one ended and in smaller steps, "
        f"until searches have taken {length.searching_s:g} s"
    )


def _settled(found: Measurement) -> str:
    if not found.settled:
        return "no"
    rounds = len(found.rounds)
    return f"after {found.num_warm_up} windows" + (f" of {rounds} parts" if rounds > 1 else "")


def _name(found: Measurement) -> str:
    return f"{found.contender}, {found.scenario}"
