"""One batch run in a process of its own: what memory it held while it lasted."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillserve_bench.kills import failed_run
from skillserve_bench.processor import tree_memory_mib

__all__ = ["MemoryRun", "watched"]

_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRun:
    """A process that came to its end."""

    wall_s: float
    samples_mib: tuple[float, ...]
    """Resident memory of the process and its descendants, at even distances while it held any."""
    main_peak_mib: float
    """What the kernel noted as the main process's peak, between samples too.

    `VmHWM` and not the `ru_maxrss` of wait4: that one counts what the parent held when it forked."""
    outcome: dict[str, Any]
    """The last object that it printed."""

    @property
    def peak_mib(self) -> float:
        """The larger one of both views."""
        return max((*self.samples_mib, self.main_peak_mib))

    def at(self, share: float) -> float:
        """Resident memory when so much of the run's time was over, MiB; 0 for one that ended before a first look."""
        if not self.samples_mib:
            return 0.0
        return self.samples_mib[min(int(share * len(self.samples_mib)), len(self.samples_mib) - 1)]


def watched(command: Sequence[str], folder: Path) -> MemoryRun:
    """Run a command to its end, what it prints in files of `folder`; raises SkillserveError if it fails."""
    results, talk = folder / "results.jsonl", folder / "talk.txt"
    samples, peak_mib, begin = [], 0.0, time.perf_counter()
    with (
        results.open("wb") as out,
        talk.open("wb") as err,
        subprocess.Popen(command, stdout=out, stderr=err) as process,
    ):
        try:
            while True:
                # A process gives its memory back before it can be waited for: that nothing is the end, not a sample.
                if held_mib := tree_memory_mib(process.pid):
                    samples.append(held_mib)
                peak_mib = max(peak_mib, _peak_mib(process.pid))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_INTERVAL_S)
                    break
        except BaseException:
            process.kill()
            raise
    wall_s = time.perf_counter() - begin
    lines = results.read_text(encoding="utf-8").splitlines()
    if process.returncode:
        said = [*talk.read_text(encoding="utf-8", errors="replace").splitlines(), *lines]
        raise failed_run(command, process.returncode, said)
    return MemoryRun(wall_s=wall_s, samples_mib=tuple(samples), main_peak_mib=peak_mib, outcome=json.loads(lines[-1]))


def _peak_mib(pid: int) -> float:
    """The peak that Linux keeps of a process's resident memory, 0 for one that has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0
