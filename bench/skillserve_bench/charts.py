"""Latency measurements as charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skillserve.settings import BenchSettings
from skillserve_bench.lengths import LENGTHS
from skillserve_bench.measurement import Measurement, within
from skillserve_bench.plots import draw_bars, draw_cdfs, draw_counts, draw_lengths, draw_rates, draw_timeline
from skillserve_bench.report import Chart
from skillserve_bench.scenarios.latency import Results, keeps_bound

__all__ = ["charts_of"]

_SINGLE, _SATURATION = "single", "saturation"
_CLOSED = {_SINGLE, "multi", _SATURATION, "offline"}


def charts_of(found: Sequence[Results], *, lens: Mapping[str, Sequence[int]], settings: BenchSettings) -> list[Chart]:
    """Charts of every contender, then what was joined and how long the requests were."""
    charts = [chart for results in found for chart in _of_contender(results, settings)]
    batches = {
        f"{each.contender}, {each.scenario}, {role}": dict(statistics.batch_sizes)
        for results in found
        for each in results.measurements
        if each.scenario in {_SATURATION, "server"}
        for role, statistics in each.server.items()
        if statistics.batch_sizes
    }
    if batches:
        charts.append(Chart(title="Requests joined in one execution", svg=draw_counts(batches)))
    if sent := {name: each for name, each in lens.items() if each}:
        charts.append(Chart(title="Lengths of what was sent", svg=draw_lengths(sent)))
    return charts


def _of_contender(results: Results, settings: BenchSettings) -> list[Chart]:
    name, charts = results.contender, []
    answered = [each for each in results.measurements if each.num_answered]
    steady = {each.scenario: each.merged for each in answered if "overload" not in each.scenario}
    if steady:
        charts.append(Chart(title=f"{name}: latency, by share of answers", svg=draw_cdfs(steady)))
    tried = [*results.probes, *(each for each in answered if each.scenario == "server")]
    points = [
        (each.offered_per_s, each.latency_ms(0.5), each.latency_ms(0.99), keeps_bound(each, results.bound_ms))
        for each in tried
        if each.num_answered and each.offered_per_s
    ]
    if points:
        svg = draw_rates(points, bound_ms=results.bound_ms)
        charts.append(Chart(title=f"{name}: latency against rate", svg=svg))
    rates = {each.scenario: each.per_s for each in answered if each.scenario in _CLOSED and each.rates}
    base = next((base for base in (_SATURATION, _SINGLE) if base in rates and rates[base].value), None)
    if base:
        charts.append(Chart(title=f"{name}: throughput, ratios to {base}", svg=draw_bars(rates, base=base)))
    charts += [
        Chart(title=f"{name}: {each.scenario} in time", svg=_timeline(each, settings, results.bound_ms))
        for each in answered
        if "overload" in each.scenario
    ]
    return charts


def _timeline(found: Measurement, settings: BenchSettings, bound_ms: float) -> str:
    seconds = LENGTHS[settings.length].overload_s
    points = [
        (
            (window.number + 0.5) * found.window_s,
            window.latencies.quantile_us(0.99) / 1e3,
            within([window], bound_ms) / window.num_scheduled,
        )
        for window in found.windows
        if window.num_scheduled
    ]
    return draw_timeline(points, overloaded_s=(seconds, 2 * seconds), bound_ms=bound_ms)
