"""The one door to Matplotlib: charts of latencies, rates and sizes, as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from skillserve_bench.intervals import Estimate
from skillserve_bench.load.histogram import Histogram

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ["Spot", "draw_bars", "draw_cdfs", "draw_counts", "draw_front", "draw_lengths", "draw_rates", "draw_timeline"]

_WIDTH_IN, _HEIGHT_IN = 6.4, 3.8
_COLOURS = ("#1f5fa8", "#c23b22", "#2f8f4e", "#8a5fb0", "#b07d1f", "#555555")
_TICKS = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)
_LENGTH_BINS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A point of two figures, one with an interval."""

    label: str
    x: Estimate
    y: float
    on_front: bool


def draw_cdfs(latencies: Mapping[str, Histogram]) -> str:
    """Share of answers against latency; the share axis stretches the tail, one decade for each nine."""

    def nines(share: float) -> float:
        return float(-np.log10(1 - share))

    def onto(axes: Axes) -> None:
        for (name, histogram), colour in zip(latencies.items(), _COLOURS * len(latencies), strict=False):
            values, counts = histogram.counts()
            if not len(values):
                continue
            # The place of a value is the middle of its step, so that the last one does not lie at infinity.
            shares = (np.cumsum(counts) - counts / 2) / counts.sum()
            axes.plot(values / 1e3, -np.log10(1 - shares), color=colour, label=f"{name} ({counts.sum():,})")
        axes.set_xscale("log")
        _plain(axes.xaxis)
        axes.set_yticks([nines(tick) for tick in _TICKS], ["0", *(f"p{tick * 100:g}" for tick in _TICKS[1:])])
        axes.set(xlabel="latency from the scheduled start, ms", ylabel="share of answers")
        axes.legend(fontsize=8, frameon=False)

    return _svg(onto)


def draw_rates(points: Sequence[tuple[float, Estimate, Estimate, bool]], *, bound_ms: float) -> str:
    """Latency against offered rate: `(rate, p50, p99, whether it kept the bound)`."""

    def onto(axes: Axes) -> None:
        ordered = sorted(points, key=lambda point: point[0])
        rates = [point[0] for point in ordered]
        for name, place, colour in (("p50", 1, _COLOURS[0]), ("p99", 2, _COLOURS[1])):
            found: list[Estimate] = [point[place] for point in ordered]  # type: ignore[misc]
            values = [each.value for each in found]
            below = [each.value - (each.value if each.low is None else each.low) for each in found]
            above = [(each.value if each.high is None else each.high) - each.value for each in found]
            # No line: searches try the same rates at different times, and between those it would jump up and down.
            axes.errorbar(
                rates, values, yerr=[below, above], color=colour, linestyle="", marker="o", ms=4, capsize=3, label=name
            )
        axes.axhline(bound_ms, color=_COLOURS[-1], linestyle="--", linewidth=1, label=f"bound {bound_ms:g} ms")
        failed = [(point[0], point[2].value) for point in ordered if not point[3]]
        if failed:
            axes.plot(*zip(*failed, strict=True), "x", color="black", ms=9, label="bound not kept")
        axes.set(xlabel="offered requests a second", ylabel="latency, ms", yscale="log")
        _plain(axes.yaxis)
        axes.legend(fontsize=8, frameon=False)

    return _svg(onto)


def draw_bars(rates: Mapping[str, Estimate], *, base: str) -> str:
    """Sequences a second, each with its ratio to `base`."""

    def onto(axes: Axes) -> None:
        names = list(rates)
        for place, name in enumerate(names):
            rate = rates[name]
            axes.barh(place, rate.value, color=_COLOURS[0] if name == base else _COLOURS[2], height=0.6)
            if rate.low is not None and rate.high is not None:
                axes.plot([rate.low, rate.high], [place, place], color="black", linewidth=2)
            ratio = rate.value / rates[base].value
            axes.annotate(
                f"{rate.value:,.4g}/s, x{ratio:.2f}",
                (rate.value, place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(xlabel="sequences answered a second", xlim=(0, 1.4 * max(rate.value for rate in rates.values())))

    return _svg(onto, height_in=1.2 + 0.45 * len(rates))


def draw_counts(executions: Mapping[str, Mapping[int, int]]) -> str:
    """How many requests the server joined: share of executions by batch size, for each model."""

    def onto(axes: Axes) -> None:
        width = 0.8 / len(executions)
        for place, (name, sizes) in enumerate(executions.items()):
            total = sum(sizes.values())
            xs = np.array(sorted(sizes)) + (place - (len(executions) - 1) / 2) * width
            shares = [sizes[size] / total for size in sorted(sizes)]
            axes.bar(xs, shares, width=width, color=_COLOURS[place % len(_COLOURS)], label=f"{name} ({total:,})")
        axes.set(xlabel="requests joined in one execution", ylabel="share of executions")
        _legend_below(axes)

    return _svg(onto)


def draw_lengths(lens: Mapping[str, Sequence[int]]) -> str:
    """Tokens of the sequences that were sent, for each model."""

    def onto(axes: Axes) -> None:
        most = max(max(each) for each in lens.values())
        bins = np.linspace(0, most + 1, min(_LENGTH_BINS, most + 1) + 1).tolist()
        for (name, each), colour in zip(lens.items(), _COLOURS * len(lens), strict=False):
            label = f"{name} ({len(each):,}, mean {np.mean(each):.0f})"
            axes.hist(each, bins=bins, weights=[1 / len(each)] * len(each), color=colour, alpha=0.6, label=label)
        axes.set(xlabel="tokens of a sequence", ylabel="share of sequences")
        _legend_below(axes)

    return _svg(onto)


def draw_timeline(
    points: Sequence[tuple[float, float, float]], *, overloaded_s: tuple[float, float], bound_ms: float
) -> str:
    """An overload in time: `(second, p99 in ms or nan, share within the bound)` of each window."""

    def onto(axes: Axes) -> None:
        seconds = [point[0] for point in points]
        axes.axvspan(*overloaded_s, color="#eeeeee", label="overload")
        axes.plot(seconds, [point[1] for point in points], color=_COLOURS[1], label="p99 latency, ms (left)")
        axes.axhline(bound_ms, color=_COLOURS[-1], linestyle="--", linewidth=1, label=f"bound {bound_ms:g} ms")
        axes.set(xlabel="seconds", ylabel="latency, ms", yscale="log")
        _plain(axes.yaxis)
        shares = axes.twinx()
        shares.plot(seconds, [point[2] for point in points], color=_COLOURS[0], label="share within the bound (right)")
        shares.set(ylim=(-0.03, 1.03), ylabel="share of requests")
        _legend_below(axes, [handle for each in (axes, shares) for handle in each.get_legend_handles_labels()[0]])

    return _svg(onto)


def draw_front(spots: Sequence[Spot], *, xlabel: str, ylabel: str, less_is_better: bool) -> str:
    """Quality against speed: the front in colour and connected, what it beats in grey, by numbers."""

    def onto(axes: Axes) -> None:
        front = sorted((spot for spot in spots if spot.on_front), key=lambda spot: spot.x.value)
        # Between two points of a front the worse quality is what the better speed buys, hence steps.
        steps: Literal["post", "pre"] = "post" if less_is_better else "pre"
        places = [spot.x.value for spot in front], [spot.y for spot in front]
        axes.step(*places, where=steps, color=_COLOURS[0], linewidth=1, label="front")
        for spot in spots:
            colour = _COLOURS[0] if spot.on_front else "#999999"
            if spot.x.low is not None and spot.x.high is not None:
                axes.plot([spot.x.low, spot.x.high], [spot.y, spot.y], color=colour, linewidth=1)
            axes.plot([spot.x.value], [spot.y], "o", color=colour, ms=5)
            axes.annotate(
                spot.label, (spot.x.value, spot.y), xytext=(3, 5), textcoords="offset points", fontsize=8, color=colour
            )
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
        _plain(axes.xaxis)
        axes.margins(0.1)
        axes.legend(fontsize=8, frameon=False)

    return _svg(onto)


def _plain(axis: Axis) -> None:
    """Ticks of a logarithmic axis as people write numbers: 5, 10, 20, and not powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend_below(axes: Axes, handles: Sequence[Artist] | None = None) -> None:
    """Under the chart, where it hides nothing."""
    found = axes.get_legend_handles_labels()[0] if handles is None else handles
    axes.legend(handles=found, fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)


def _svg(onto: Callable[[Axes], None], *, height_in: float = _HEIGHT_IN) -> str:
    """One figure, drawn without a display and without pyplot's global state; the same bytes for the same data."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "skillserve", "font.family": "sans-serif"}):
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        axes = figure.subplots()
        onto(axes)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()
