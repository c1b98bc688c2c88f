"""The folder of bundles: one run publishes at a time, and old versions go."""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skillserve.console import talk
from skillserve.errors import BundleError

__all__ = ["LOCK_FILE", "locked", "remove_old"]

LOCK_FILE = ".lock"

_VERSION = re.compile(r"\d{8}T\d{12}Z-[0-9a-f]{8}")
"""Names that `publish` gives; whatever else lies in the folder is not ours to remove."""


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Publish alone: another run waits here, for the seconds that writing a bundle takes. Raises BundleError."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / LOCK_FILE).open("ab")
    except OSError as error:
        raise BundleError(
            f"folder of bundles `{root}`",
            got=error.strerror or str(error),
            wanted="a folder that can be written to",
            fix="Correct its permissions, or name another one: --bundles FOLDER",
        ) from error
    with file:  # closing it gives the lock back, and so does the death of the process
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_old(root: Path, *, keep: int, always: frozenset[str | None]) -> None:
    """Remove all but the newest `keep` versions, and never those in `always`; one that resists is only told."""
    versions = sorted(path for path in root.iterdir() if _VERSION.fullmatch(path.name) and path.is_dir())
    for old in versions[:-keep]:
        if old.name not in always:
            try:
                shutil.rmtree(old)
            except OSError as error:
                talk(f"The old bundle {old} could not be removed: {error.strerror or error}.")
