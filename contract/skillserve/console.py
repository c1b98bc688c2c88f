"""How commands speak: results on stdout, talk and progress on stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Bar", "err", "out", "print_json", "progress", "talk"]

out = Console(highlight=False, emoji=False)
"""Results, for people. Machines read `print_json`."""

err = Console(stderr=True, highlight=False, emoji=False)
"""Talk: what is being done, warnings, progress."""


def talk(message: str) -> None:
    """One line of talk; `message` is plain text, square brackets included."""
    err.print(message, markup=False, soft_wrap=True)


def print_json(result: Mapping[str, Any]) -> None:
    """One JSON object on stdout, on one line."""
    # Flushed, since a supervisor waits for the line; escaped where UTF-8 has no form (lone surrogates).
    line = json.dumps(result, ensure_ascii=False, allow_nan=False)
    print(line.encode("utf-8", "backslashreplace").decode(), flush=True)


_LINE_INTERVAL_S = 30.0
"""Where nobody watches a bar move, such as a log file, a line tells how far the work is, this often."""


class Bar:
    """A running progress bar: `advance()` as work is done, `note` for a figure beside it."""

    def __init__(self, bars: Progress, title: str, total: int | None) -> None:
        self._bars = bars
        self._id = bars.add_task(title, total=total, note="")
        self._told = time.monotonic()

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """Count finished steps; `note` replaces the text at the end of the bar."""
        if note is None:
            self._bars.update(self._id, advance=steps)
        else:
            self._bars.update(self._id, advance=steps, note=note)
        if not err.is_terminal and time.monotonic() - self._told >= _LINE_INTERVAL_S:
            self._told = time.monotonic()
            talk(self._line())

    def _line(self) -> str:
        """What the bar would show, in words."""
        (task,) = self._bars.tasks
        of_total = "" if task.total is None else f"/{task.total:.0f}"
        left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
        note = f" · {task.fields['note']}" if task.fields["note"] else ""
        return f"{task.description} {task.completed:.0f}{of_total} after {task.elapsed or 0:.0f} s{left}{note}"


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Bar]:
    """A bar on stderr with count, elapsed and remaining time; `total=None` shows that something is running.

    Where stderr is no terminal there is no bar, but a line now and then.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        yield Bar(bars, title, total)
