"""Two reports of `skillserve bench latency`, as ratios with intervals.

A figure is a regression if it is worse by more than the share AND its interval excludes 1: a difference that is both
too large and not an accident of these runs. With fewer than ten windows on a side, and fewer than three rounds, there
is no interval, and the ratio alone decides. Of so many ratios some 95 % intervals would exclude 1 by accident; so each
has the confidence that makes it 95 % for all together (Bonferroni). Runs that are partial or invalid are named and not
judged.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skillserve.errors import UsageError
from skillserve_bench.intervals import CONFIDENCE, Estimate, quantile_ratio, rate_ratio
from skillserve_bench.load.windows import Window
from skillserve_bench.measurement import per_window
from skillserve_bench.rate_search import Bracket, HighestRate
from skillserve_bench.report import Table

__all__ = ["Comparison", "Ratio", "compare_reports", "comparison_table", "read_report"]

_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_STEADY = {"single", "multi", "saturation", "offline"}
"""Scenarios whose load is the same in both; `server` runs at a rate of its own, which is the figure."""
_CIRCUMSTANCES = ("processor", "num_cores", "gpus", "niceness", "real_time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """New relative to old."""

    level: str
    scenario: str
    figure: str
    """`p99`, `requests/s`, `highest rate`."""
    ratio: Estimate
    more_is_worse: bool
    regression: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that two reports have in common."""

    ratios: tuple[Ratio, ...]
    remarks: tuple[str, ...]
    """What was not compared, and why it may be no fair comparison."""

    @property
    def regressions(self) -> list[Ratio]:
        """What became worse."""
        return [each for each in self.ratios if each.regression]

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "passed": not self.regressions,
            "ratios": [asdict(each) for each in self.ratios],
            "remarks": list(self.remarks),
        }


def read_report(path: Path) -> dict[str, Any]:
    """A JSON report of latencies; raises UsageError if it is none."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        levels = report["figures"]["levels"]
        windows = [
            Window.from_dict(window)
            for level in levels.values()
            for found in level["measurements"].values()
            for window in found["windows"]
        ]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"report `{path}`",
            got=f"{type(error).__name__}: {error}",
            wanted="the JSON report of a latency measurement",
            fix="Write one: skillserve bench latency --out NAME.json",
        ) from error
    if not windows:
        raise UsageError(
            f"report `{path}`",
            got="no measurements",
            wanted="at least one",
            fix="Measure again: skillserve bench latency --out NAME.json",
        )
    found_report: dict[str, Any] = report
    return found_report


def compare_reports(new: Mapping[str, Any], old: Mapping[str, Any], *, share: float, seed: int) -> Comparison:
    """Form all ratios; UsageError if the reports have no measurement in common that can be judged."""
    remarks = _circumstances(new, old)
    ratios: list[Ratio] = []
    common = _common(new, old, remarks)
    highest = _highest_of_both(new, old)
    confidence = 1 - (1 - CONFIDENCE) / max(len(common) * (len(_SHARES) + 1) + len(highest), 1)
    for level, name, one, other in common:
        objections = [*one["objections"], *other["objections"]]
        if objections:
            remarks.append(f"{level}, {name}: not compared, {objections[0]}")
            continue
        sides = [_rounds(found) for found in (one, other)]
        latencies = [[[window.latencies for window in windows] for windows in rounds] for rounds in sides]
        for figure, at in _SHARES.items():
            ratio = quantile_ratio(latencies[0], latencies[1], at, seed=seed, confidence=confidence)
            ratios.append(_judged(level, name, figure, ratio, share, more_is_worse=True))
        rates = [per_window(rounds, found["window_s"]) for rounds, found in zip(sides, (one, other), strict=True)]
        if all(rates):
            ratio = rate_ratio(rates[0], rates[1], seed=seed, confidence=confidence)
            ratios.append(_judged(level, name, "requests/s", ratio, share, more_is_worse=False))
    for level, (one, other) in highest.items():
        ratio = one.relative_to(other, confidence=confidence)
        if ratio.high is None:
            remarks.append(f"{level}, server: not compared, a search of the second report ended before a rate failed")
        else:
            ratios.append(_judged(level, "server", "highest rate", ratio, share, more_is_worse=False))
    if not ratios:
        raise UsageError(
            "the two reports",
            got="; ".join(remarks) or "no measurement in common",
            wanted="at least one valid measurement of the same level and scenario in both",
            fix="Measure both with the same --levels and --scenarios.",
        )
    return Comparison(ratios=tuple(ratios), remarks=tuple(remarks))


def _rounds(found: Mapping[str, Any]) -> list[list[Window]]:
    """A measurement's windows by round; reports of earlier releases know one."""
    windows = [Window.from_dict(window) for window in found["windows"]]
    borders = itertools.accumulate(found.get("windows_of_rounds", [len(windows)]), initial=0)
    return [windows[begin:end] for begin, end in itertools.pairwise(borders)]


def _highest_of_both(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, tuple[HighestRate, HighestRate]]:
    """By level, where both reports have one, within the same bound."""
    if _bound(new) != _bound(old):
        return {}
    sides = [{level: _highest(each) for level, each in report["figures"]["levels"].items()} for report in (new, old)]
    both = {level: (one, sides[1].get(level)) for level, one in sides[0].items()}
    return {level: (one, other) for level, (one, other) in both.items() if one is not None and other is not None}


def _highest(level: Mapping[str, Any]) -> HighestRate | None:
    """What kept the bound, if something did; reports of earlier releases know of one search."""
    if not level["server_rate_per_s"]:
        return None
    searches = [Bracket(**each) for each in level.get("searches", [level.get("bracket")]) if each]
    return HighestRate(
        level["server_rate_per_s"],
        level.get("server_refused_per_s", searches[0].failed if searches else None),
        tuple(each.found for each in searches if each.found is not None),
    )


def _bound(report: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """What `server` was bound by: milliseconds, or a multiple of lone requests (reports before it have none)."""
    factor = report["figures"].get("bound_factor")
    return (report["figures"]["bound_ms"], None) if factor is None else (None, factor)


def _common(new: Mapping[str, Any], old: Mapping[str, Any], remarks: list[str]) -> list[tuple[str, str, Any, Any]]:
    """Level, scenario and both measurements, of those in both reports."""
    sides = [
        {
            (level, name): each
            for level, results in report["figures"]["levels"].items()
            for name, each in results["measurements"].items()
            if name in _STEADY
        }
        for report in (new, old)
    ]
    remarks += [
        f"{', '.join(key)}: only in the {'second' if key in sides[0] else 'first'} report"
        for key in sorted(sides[0].keys() ^ sides[1].keys())
    ]
    return [(*key, sides[0][key], sides[1][key]) for key in sides[0] if key in sides[1]]


def _judged(level: str, scenario: str, figure: str, ratio: Estimate, share: float, *, more_is_worse: bool) -> Ratio:
    worse = ratio.value > 1 + share if more_is_worse else ratio.value < 1 / (1 + share)
    return Ratio(
        level=level,
        scenario=scenario,
        figure=figure,
        ratio=ratio,
        more_is_worse=more_is_worse,
        regression=worse and ratio.excludes(1.0) is not False,
    )


def _circumstances(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """In what the two measurements differ beside what was measured."""
    sides = [report["environment"] for report in (new, old)]
    remarks = [
        f"{name} differs: {sides[0].get(name)} and {sides[1].get(name)}"
        for name in _CIRCUMSTANCES
        if sides[0].get(name) != sides[1].get(name)
    ]
    for name in ("length", "seed", "bound_ms", "bound_factor"):
        values = [report["figures"].get(name) for report in (new, old)]
        if values[0] != values[1]:
            remarks.append(f"{name} differs: {values[0]} and {values[1]}")
    return remarks


def comparison_table(found: Comparison) -> Table:
    """The ratios, for people."""
    return Table(
        title="Second report relative to the first",
        columns=["level, scenario", "figure", "ratio", "verdict"],
        rows=[
            [f"{each.level}, {each.scenario}", each.figure, each.ratio.text(3), "REGRESSION" if each.regression else ""]
            for each in found.ratios
        ],
    )
