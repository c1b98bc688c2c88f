"""Who used the cores while something was measured: this process, the server, and everybody else.

A closed loop whose client eats the cores measures its client, and a neighbour that eats them spoils every
figure; both are therefore counted and reported. Read from Linux's /proc.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Meter", "Usage"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_IDLE_COLUMNS = {3, 4}
"""idle and iowait, in the first line of /proc/stat."""
_NUM_COLUMNS = 8
"""user to steal; the guest columns behind them are counted in user already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Shares of all cores' time, in [0, 1]."""

    client: float
    server: float | None
    """None for a server whose processes are not known."""
    others: float | None
    """Everybody else; unknown where the server is."""

    @classmethod
    def mean(cls, usages: list[Usage]) -> Usage:
        """The mean over rounds of about the same duration."""
        servers = [usage.server for usage in usages if usage.server is not None]
        others = [usage.others for usage in usages if usage.others is not None]
        return cls(
            client=sum(usage.client for usage in usages) / len(usages),
            server=sum(servers) / len(servers) if servers else None,
            others=sum(others) / len(others) if others else None,
        )


class Meter:
    """Measures from its creation until `usage` is asked for.

    `server_pid` is the server's process, whose descendants count as its own; None if nobody knows it.
    """

    def __init__(self, server_pid: int | None) -> None:
        self._server_pid = server_pid
        self._machine_s = _machine_s()
        self._server_s = _tree_s(server_pid) if server_pid is not None else 0.0
        self._client_s = time.process_time()
        self._begin = time.perf_counter()

    def usage(self) -> Usage:
        """Shares since the meter was made."""
        available_s = (time.perf_counter() - self._begin) * (os.cpu_count() or 1)
        client_s = time.process_time() - self._client_s
        if self._server_pid is None:
            return Usage(client=client_s / available_s, server=None, others=None)
        server_s = _tree_s(self._server_pid) - self._server_s
        others_s = max(_machine_s() - self._machine_s - client_s - server_s, 0.0)
        return Usage(client=client_s / available_s, server=server_s / available_s, others=others_s / available_s)


def _machine_s() -> float:
    """Seconds that all cores were busy since boot."""
    first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1 : 1 + _NUM_COLUMNS]
    return sum(int(ticks) for i, ticks in enumerate(first) if i not in _IDLE_COLUMNS) / _TICKS_PER_S


def _tree_s(root: int) -> float:
    """Processor seconds of a process and its living descendants."""
    spent: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for pid, parent, seconds in _processes():
        spent[pid] = seconds
        children.setdefault(parent, []).append(pid)
    total, waiting = 0.0, [root]
    while waiting:
        pid = waiting.pop()
        total += spent.get(pid, 0.0)
        waiting += children.get(pid, [])
    return total


def _processes() -> Iterator[tuple[int, int, float]]:
    """Every process with its parent and its processor seconds."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):  # it ended meanwhile
                # The name in brackets may hold spaces; the numbers stand behind its last bracket.
                fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                yield int(folder.name), int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
