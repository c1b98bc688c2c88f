"""How commands speak: results on stdout, talk and progress on stderr."""

from __future__ import annotations

import json
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


class Bar:
    """A running progress bar: `advance()` as work is done, `note` for a figure beside it."""

    def __init__(self, progress: Progress, task: int) -> None:
        self._progress = progress
        self._task = progress.tasks[task].id

    def advance(self, steps: int = 1, *, note: str | None = None) -> None:
        """Count finished steps; `note` replaces the text at the end of the bar."""
        if note is None:
            self._progress.update(self._task, advance=steps)
        else:
            self._progress.update(self._task, advance=steps, note=note)


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Bar]:
    """A bar on stderr with count, elapsed and remaining time; `total=None` shows that something is running."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=not err.is_terminal) as bars:
        yield Bar(bars, bars.add_task(title, total=total, note=""))
