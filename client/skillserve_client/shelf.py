"""The folder of bundles: one run publishes at a time, over the version that it began with, and old ones go."""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skillserve.console import talk
from skillserve.errors import BundleError
from skillserve.settings import IndexSettings
from skillserve_client.bundle import collection_of, live_version
from skillserve_client.doors import drop_collection

__all__ = ["LOCK_FILE", "locked", "next_version"]

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


@contextmanager
def next_version(index: IndexSettings, *, over: str | None, advice: str, force: bool = False) -> Iterator[None]:
    """Publish in the block, alone; afterwards all but the newest versions, the live one and its parent go.

    Raises BundleError with the caller's advice if the live version is no longer the one that the run began with,
    unless forced.
    """
    root = index.bundles
    with locked(root):
        before = live_version(root)
        if before != over and not force:
            raise BundleError(
                f"folder of bundles `{root}`",
                got=f"{before or 'no bundle'} as the live one",
                wanted=f"{over or 'no bundle'}, as at the start of this run",
                fix=f"Nothing was published. {advice}",
            )
        yield
        _remove_old(index, always=frozenset({live_version(root), before}))


def _remove_old(index: IndexSettings, *, always: frozenset[str | None]) -> None:
    """Versions, and collections that only those named. One that resists is only told."""
    unneeded: set[str] = set()
    for old in _versions(index.bundles)[: -index.keep]:
        if old.name not in always:
            if collection := collection_of(old):
                unneeded.add(collection.name)
            try:
                shutil.rmtree(old)
            except OSError as error:
                talk(f"The old bundle {old} could not be removed: {error.strerror or error}.")
    needed = {collection.name for version in _versions(index.bundles) if (collection := collection_of(version))}
    for name in sorted(unneeded - needed):
        drop_collection(name, index)


def _versions(root: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in root.iterdir() if _VERSION.fullmatch(path.name) and path.is_dir())
