"""What a machine is, as far as speed depends on it."""

from __future__ import annotations

import itertools
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["memory_bytes", "num_cores", "num_gpus", "processor", "threads_for_all_cores"]

_ROOT = Path("/")


def num_cores(root: Path = _ROOT) -> int:
    """Cores that this process may use: those it may run on, or fewer where a control group bounds its time.

    A bound of 2.5 cores counts as 2: a thread too many does not gain half a core, it makes the kernel stop all of them
    for the rest of a period. `root` is where the kernel's files are.
    """
    allowed, bound = _num_allowed(), _bound(root)
    return allowed if bound is None else min(allowed, bound)


def threads_for_all_cores(root: Path = _ROOT) -> int:
    """What ONNX Runtime is given that shall use all cores: 0, its own count, unless this process may use fewer.

    It has a thread for each of the machine's physical cores, whatever part of them this process may run on and whatever
    time its container has. Two threads of one core count once here, too.
    """
    cores = num_cores(root)
    return 0 if cores >= (os.cpu_count() or 1) else min(cores, _num_physical(root))


def memory_bytes(root: Path = _ROOT) -> int:
    """Memory that this process may use, taken or free: the machine's, or less where a control group bounds it."""
    limits = [limit for folder in _groups(root, "memory") if (limit := _limit_bytes(folder)) is not None]
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


def num_gpus(root: Path = _ROOT, environ: Mapping[str, str] | None = None) -> int:
    """GPUs of NVIDIA's that this process may use: their device files, which a container has of its own GPUs alone.

    `CUDA_VISIBLE_DEVICES` may name fewer, by number or by id (`GPU-…`, `MIG-…`, whose being there is taken on trust);
    from the first name that is none of them on, CUDA sees no more.
    """
    devices = [path for path in (root / "dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    named = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return len(devices)

    def is_one(name: str) -> bool:
        return int(name) < len(devices) if name.isdecimal() else name.startswith(("GPU-", "MIG-"))

    visible = itertools.takewhile(is_one, map(str.strip, named.split(",")))
    return min(len(devices), len(list(visible)))


def processor() -> str:
    """Name of the processor, as the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _num_allowed() -> int:
    return len(os.sched_getaffinity(0))


def _num_physical(root: Path) -> int:
    """Physical cores that this process may run on; a core that the kernel tells nothing of is one of its own."""
    found = set()
    for number in os.sched_getaffinity(0):
        file = root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        try:
            found.add(file.read_text(encoding="ascii").strip())
        except OSError:
            found.add(str(number))
    return len(found)


def _bound(root: Path) -> int | None:
    """Whole cores that the tightest of this process's control groups allows; None where none bounds it.

    Both versions as the kernel documents them, Documentation/admin-guide/cgroup-v2.rst (`cpu.max`) and
    Documentation/scheduler/sched-bwc.rst (`cpu.cfs_quota_us`).
    """
    bounds = [
        quota / period for folder in _groups(root, "cpu") for quota, period in (_quota_and_period(folder),) if quota > 0
    ]
    return max(1, int(min(bounds))) if bounds else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups that may bound its `cpu` or `memory`, each with all above it.

    Those above bind as well. A container is often told the name that its group has outside, and finds the group itself
    at the root; folders that are not there are passed over by whoever reads them.
    """
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, name = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            # Version 2 has one tree; of version 1, `cpu` is a link where the tree has several names in some order.
            for top in (mount,) if number == "0" else (mount / controllers, mount / controller):
                group = top / name.strip("/")
                yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _quota_and_period(group: Path) -> tuple[float, float]:
    """Time on cores in each period, both in microseconds; no time where there is no bound."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / file).read_text(encoding="ascii") for file in files).split()
            return float(quota), float(period)
        except (OSError, ValueError):  # not there, of another version, or `max`
            continue
    return 0.0, 1.0


def _limit_bytes(group: Path) -> int | None:
    """Bytes that a group may hold; None where there is no bound, which version 1 spells as one beyond any memory."""
    for file in ("memory.max", "memory.limit_in_bytes"):
        try:
            return int((group / file).read_text(encoding="ascii"))
        except (OSError, ValueError):  # not there, of the other version, or `max`
            continue
    return None
