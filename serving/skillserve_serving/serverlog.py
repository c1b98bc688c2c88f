"""Reads a server's log: its last words, and the line that says why it cannot start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LoadFailure", "ServerLog"]

_TAIL_LINES = 12
_PREFIX = re.compile(r'^[IWEF]\d{4} [\d:.]+ \d+ [\w.]+:\d+\]\s*"?')
_TRACEBACK = re.compile(r"(\\n)+At:.*$|\s*At:\s*$")
_FAILURES = (
    re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<cause>.+)"),
    re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<cause>.+)"),
    re.compile(r"(?P<cause>.*error while loading shared libraries.+)"),
    re.compile(r"(?P<cause>failed to start \w+ service: .+)"),
    re.compile(r"^error: (?P<cause>.+)"),
)
_OF_THE_REPOSITORY = ("RepositoryError", "Invalid argument", "Not found", "failed to read text proto")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailure:
    """Why a server cannot come up."""

    model: str | None
    cause: str

    @property
    def blames_repository(self) -> bool:
        """Whether the model's files are at fault, and not the machine."""
        return self.model is not None and any(word in self.cause for word in _OF_THE_REPOSITORY)


class ServerLog:
    """The part of a log file that one server process wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        """What was written since this process began, without the frames of Triton's tables."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._start)
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return []
        return [line for line in text.splitlines() if line.strip() and line[0] not in "+|"]

    def tail(self) -> str:
        """The last lines, for an error message."""
        return "\n".join(self.lines()[-_TAIL_LINES:])

    def failure(self) -> LoadFailure | None:
        """The most telling fatal line, if there is one."""
        bare = [_PREFIX.sub("", line) for line in self.lines()]
        for pattern in _FAILURES:
            for line in bare:
                if match := pattern.search(line):
                    cause = _TRACEBACK.sub("", match["cause"].rstrip('"')).replace("\\n", " ").strip()
                    return LoadFailure(model=match.groupdict().get("model"), cause=cause)
        return None
