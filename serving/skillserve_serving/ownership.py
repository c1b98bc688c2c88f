"""Names for what a server leaves outside its process: a later start can tell the dead owner's from the living's.

A name carries the owner's process: pid namespace, pid and start time. A pid alone is not enough: it is reused,
and two containers that share `/dev/shm` each have their own pid 7.

    skillserve-<namespace>-<pid>-<start time in clock ticks>-<random>
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path

__all__ = ["SHARED_MEMORY", "owned_name", "remove_regions", "sweep"]

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory; Triton's stub uses no other

_NAME = re.compile(r"skillserve-(\d+)-(\d+)-(\d+)-[0-9a-f]{8}")


def owned_name() -> str:
    """A fresh name that belongs to this process."""
    pid = os.getpid()
    return f"skillserve-{_namespace()}-{pid}-{_start_time(pid)}-{secrets.token_hex(4)}"


def remove_regions(name: str) -> list[str]:
    """Remove the shared-memory regions whose names begin with `name`; returns theirs."""
    return [path.name for path in SHARED_MEMORY.glob(f"{name}*") if _remove(path)]


def sweep() -> list[str]:
    """Remove what dead owners left in shared memory and in the temporary folder; returns the names.

    Logs stay: they tell why the owner died.
    """
    removed = [path.name for path in SHARED_MEMORY.glob("skillserve-*") if _is_orphan(path.name) and _remove(path)]
    for folder in Path(tempfile.gettempdir()).glob("skillserve-*"):
        if not (_is_orphan(folder.name) and os.access(folder, os.W_OK | os.X_OK)):  # alive, or another user's
            continue
        if (folder / "backends").is_dir():
            shutil.rmtree(folder / "backends", ignore_errors=True)
            removed.append(folder.name)
            with contextlib.suppress(OSError):
                folder.rmdir()  # unless there is a log in it
    return removed


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:  # another user's, or gone in the meantime
        return False
    return True


def _is_orphan(name: str) -> bool:
    match = _NAME.match(name)
    if match is None or int(match[1]) != _namespace():
        return False
    return _start_time(int(match[2])) != int(match[3])


def _namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def _start_time(pid: int) -> int | None:
    """Clock ticks between boot and the start of a process (proc(5), field 22 of stat); None if it is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else int(fields[18])
