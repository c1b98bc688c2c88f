"""GPUs, as nvidia-smi describes them; none where there is no such command, or no GPU."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

__all__ = ["GpuMeter", "GpuUsage", "gpu_names", "parse_rows"]

_INTERVAL_S = 0.5
_DEADLINE_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUsage:
    """All GPUs of this machine together, over some samples."""

    busy: float
    """Mean share of time in which some kernel ran, in [0, 1]."""
    memory_mib: float
    """The most that was in use, by whomever."""

    @classmethod
    def mean(cls, usages: Sequence[GpuUsage]) -> GpuUsage | None:
        """Over loads of about the same duration; None if there are none."""
        if not usages:
            return None
        busy = sum(usage.busy for usage in usages) / len(usages)
        return cls(busy=busy, memory_mib=max(usage.memory_mib for usage in usages))


def gpu_names() -> list[str]:
    """`NVIDIA A100-SXM4-80GB, driver 550.54`, one a GPU."""
    return [", driver ".join(row) for row in _ask("name,driver_version")]


class GpuMeter:
    """Samples the GPUs twice a second while its block runs; does nothing where there are none."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def usage(self) -> GpuUsage | None:
        """What was seen; None without a GPU."""
        if not self._samples:
            return None
        busy = sum(each for each, _ in self._samples) / len(self._samples)
        return GpuUsage(busy=busy, memory_mib=max(memory for _, memory in self._samples))

    def __enter__(self) -> Self:
        if shutil.which("nvidia-smi"):
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _sample(self) -> None:
        while not self._ended.is_set():
            if sample := parse_rows(_ask("utilization.gpu,memory.used")):
                self._samples.append(sample)
            self._ended.wait(_INTERVAL_S)


def parse_rows(rows: Sequence[Sequence[str]]) -> tuple[float, float] | None:
    """Mean busy share and memory of all GPUs, MiB, of rows `percent, MiB`; None if there are none.

    >>> parse_rows([["50", "1000"], ["100", "3000"]])
    (0.75, 4000.0)
    """
    known = [row for row in rows if len(row) == 2 and all(cell.replace(".", "").isdecimal() for cell in row)]
    if not known:
        return None
    return sum(float(row[0]) for row in known) / len(known) / 100, sum(float(row[1]) for row in known)


def _ask(fields: str) -> list[list[str]]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        found = subprocess.run(
            [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_DEADLINE_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in found.stdout.splitlines() if found.returncode == 0]
