"""What happened, by windows of time: the unit in which processes report, runs settle and intervals are formed.

A request belongs to the window of its SCHEDULED start, and its latency is counted from there: a server that
stalls is seen by every request that should have started meanwhile, not by the one that waited alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from skillserve_bench.load.histogram import Histogram

__all__ = ["Records", "Window", "by_window", "merge_windows"]


class Records:
    """What one process notes of each of its requests, in arrays made beforehand; moments in ns after the start."""

    ANSWERED, WAITING = 0, -1

    def __init__(self, num: int) -> None:
        self.scheduled = np.full(num, -1, np.int64)
        self.sent = np.full(num, -1, np.int64)
        self.done = np.full(num, -1, np.int64)
        self.outcome = np.full(num, self.WAITING, np.int16)
        """ANSWERED, WAITING, or the place of its failure in `kinds`."""
        self.kinds: list[str] = ["answered"]

    def fail(self, i: int, kind: str) -> None:
        """Note that request i failed."""
        if kind not in self.kinds:
            self.kinds.append(kind)
        self.outcome[i] = self.kinds.index(kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One stretch of a run; over the windows of all processes of a run, sums are the run's."""

    number: int
    num_scheduled: int
    """Requests whose scheduled start lies in the window."""
    num_done: int
    """Answers that arrived in it, whenever their requests had started."""
    latencies: Histogram
    """From scheduled start to answer, of answered requests that started in it."""
    lags: Histogram
    """From scheduled start to sending."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Error → number of requests that started in it and failed so."""

    def to_dict(self) -> dict[str, Any]:
        """As a report keeps it."""
        return {
            "number": self.number,
            "num_scheduled": self.num_scheduled,
            "num_done": self.num_done,
            "latencies_us": self.latencies.encode(),
            "lags_us": self.lags.encode(),
            "failures": dict(self.failures),
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Read one back; KeyError, TypeError or ValueError if it is none."""
        return cls(
            number=int(found["number"]),
            num_scheduled=int(found["num_scheduled"]),
            num_done=int(found["num_done"]),
            latencies=Histogram.decode(found["latencies_us"]),
            lags=Histogram.decode(found["lags_us"]),
            failures=dict(found["failures"]),
        )


def by_window(records: Records, window_s: float) -> list[Window]:
    """Sort a process's records into windows, from the first to the last that anything happened in."""
    width = round(window_s * 1e9)
    known = records.scheduled >= 0
    scheduled, done = records.scheduled // width, records.done // width
    answered = known & (records.outcome == Records.ANSWERED)
    last = max(_last(scheduled[known]), _last(done[answered]))
    windows = []
    for number in range(last + 1):
        mine = known & (scheduled == number)
        good = mine & answered
        sent = mine & (records.sent >= 0)
        bad = Counter(records.outcome[mine & (records.outcome > Records.ANSWERED)].tolist())
        failures = {records.kinds[code]: num for code, num in bad.items()}
        if unanswered := int((mine & (records.outcome == Records.WAITING)).sum()):
            failures["Unfinished"] = unanswered
        windows.append(
            Window(
                number=number,
                num_scheduled=int(mine.sum()),
                num_done=int((answered & (done == number)).sum()),
                latencies=Histogram.of((records.done - records.scheduled)[good]),
                lags=Histogram.of((records.sent - records.scheduled)[sent]),
                failures=failures,
            )
        )
    return windows


def merge_windows(parts: Iterable[Sequence[Window]]) -> list[Window]:
    """Add up what several processes saw, window by window."""
    found: dict[int, list[Window]] = {}
    for windows in parts:
        for window in windows:
            found.setdefault(window.number, []).append(window)
    return [
        Window(
            number=number,
            num_scheduled=sum(each.num_scheduled for each in same),
            num_done=sum(each.num_done for each in same),
            latencies=Histogram.merged(each.latencies for each in same),
            lags=Histogram.merged(each.lags for each in same),
            failures=dict(sum((Counter(each.failures) for each in same), Counter())),
        )
        for number, same in sorted(found.items())
    ]


def _last(numbers: npt.NDArray[np.int64]) -> int:
    return int(numbers.max()) if len(numbers) else -1
