"""The circumstances of a measurement: machine, versions, commit, date, command."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from skillserve.machine import memory_bytes, num_cores, processor
from skillserve_bench.gpus import gpu_names
from skillserve_bench.load.priority import may_be_first

__all__ = ["Environment", "observe", "portable_command"]

_ALWAYS = ("skillserve", "onnxruntime", "numpy", "tritonclient")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What somebody needs to know to measure again."""

    date: str
    """UTC, `2026-01-31`."""
    commit: str
    processor: str
    num_cores: int
    """Cores that this process may use."""
    memory_gib: float
    system: str
    python: str
    packages: dict[str, str]
    """Package → version, of those that took part."""
    niceness: int
    """Scheduling priority of client and server; 0 is ordinary, negative is preferred."""
    real_time: bool
    """Whether load processes come before all others while they keep a schedule."""
    gpus: tuple[str, ...] = ()
    """Name and driver of each."""

    def to_dict(self) -> dict[str, Any]:
        """The environment as `--json` prints it."""
        return asdict(self)


def observe(packages: Sequence[str] = ()) -> Environment:
    """Describe this machine, with the versions of the usual packages and of `packages`."""
    return Environment(
        date=datetime.now(UTC).date().isoformat(),
        commit=_commit(Path(__file__).parent),
        processor=processor(),
        num_cores=num_cores(),
        memory_gib=round(memory_bytes() / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages={name: _version(name) for name in (*_ALWAYS, *packages)},
        niceness=os.getpriority(os.PRIO_PROCESS, 0),
        real_time=may_be_first(),
        gpus=tuple(gpu_names()),
    )


def portable_command(arguments: Sequence[str]) -> str:
    """The command line, with each absolute path cut to `<its last part>`: a reader's disk is another one.

    >>> portable_command(["bench", "quality", "--data", "/home/ann/github-skills"])
    'skillserve bench quality --data <github-skills>'
    """
    words = ["skillserve"]
    for argument in arguments:
        option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        spoken = f"<{Path(value).name}>" if value.startswith("/") else shlex.quote(value) if value else ""
        words.append(f"{option}{equals}{spoken}")
    return " ".join(words)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit(folder: Path) -> str:
    """Short hash, and whether files differ from it; an installed package has none."""
    git = shutil.which("git")
    if git is None:
        return "unknown: no git"
    command = [git, "--no-optional-locks", "-C", str(folder)]
    head = subprocess.run([*command, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return "none: not a checkout"
    changes = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + (" with uncommitted changes" if changes.stdout.strip() else "")
