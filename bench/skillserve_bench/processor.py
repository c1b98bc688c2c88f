"""Who used the cores while something was measured: this process, the server, and everybody else.

A closed loop whose client eats the cores measures its client, and a neighbour that eats them spoils every
figure; both are therefore counted and reported. Read from Linux's /proc, the server's memory too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Meter", "Usage", "children_s", "tree_memory_mib"]

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
    search: float | None = None
    """Processes that carry out whole searches, beside the server; None where there are none."""

    @classmethod
    def mean(cls, usages: list[Usage]) -> Usage:
        """The mean over rounds of about the same duration."""
        return cls(
            client=sum(usage.client for usage in usages) / len(usages),
            server=_mean(usage.server for usage in usages),
            others=_mean(usage.others for usage in usages),
            search=_mean(usage.search for usage in usages),
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

    def usage(self, *, load_s: float = 0.0, search_s: float | None = None) -> Usage:
        """Shares since the meter was made.

        `load_s` are the processor seconds of load processes, the client's too, `search_s` of those that search.
        """
        # All cores, whatever this process may use of them, for the busy time of all is what it is divided by.
        available_s = (time.perf_counter() - self._begin) * (os.cpu_count() or 1)
        client_s = time.process_time() - self._client_s + load_s
        search = None if search_s is None else search_s / available_s
        if self._server_pid is None:
            return Usage(client=client_s / available_s, server=None, others=None, search=search)
        server_s = _tree_s(self._server_pid) - self._server_s
        others_s = max(_machine_s() - self._machine_s - client_s - (search_s or 0.0) - server_s, 0.0)
        return Usage(
            client=client_s / available_s,
            server=server_s / available_s,
            others=others_s / available_s,
            search=search,
        )


def _mean(shares: Iterable[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def _machine_s() -> float:
    """Seconds that all cores were busy since boot."""
    first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1 : 1 + _NUM_COLUMNS]
    return sum(int(ticks) for i, ticks in enumerate(first) if i not in _IDLE_COLUMNS) / _TICKS_PER_S


def tree_memory_mib(root: int) -> float:
    """Resident memory of a process and its living descendants, MiB; pages that they share count more than once."""
    return sum(pages for _, pages in _tree(root)) * os.sysconf("SC_PAGE_SIZE") / 2**20


def children_s() -> float:
    """Processor seconds of this process's living descendants."""
    _, *descendants = _tree(os.getpid())
    return sum(seconds for seconds, _ in descendants)


def _tree_s(root: int) -> float:
    """Processor seconds of a process and its living descendants."""
    return sum(seconds for seconds, _ in _tree(root))


def _tree(root: int) -> list[tuple[float, int]]:
    """Processor seconds and resident pages of a process, the first, and each of its living descendants."""
    found: dict[int, tuple[float, int]] = {}
    children: dict[int, list[int]] = {}
    for pid, parent, seconds, pages in _processes():
        found[pid] = seconds, pages
        children.setdefault(parent, []).append(pid)
    members, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        if pid in found:
            members.append(found[pid])
        waiting += children.get(pid, [])
    return members


def _processes() -> Iterator[tuple[int, int, float, int]]:
    """Every process with its parent, its processor seconds and its resident pages."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):  # it ended meanwhile
                # The name in brackets may hold spaces; the numbers stand behind its last bracket.
                fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                seconds = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
                yield int(folder.name), int(fields[1]), seconds, int(fields[21])
