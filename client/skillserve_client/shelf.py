"""The folder of bundles: one run publishes at a time, over the version that it began with, and old ones go."""

from __future__ import annotations

import fcntl
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skillserve.console import talk
from skillserve.errors import BundleError
from skillserve.publish import write_text
from skillserve.settings import IndexSettings
from skillserve_client.doors import drop_collection
from skillserve_client.versions import collection_of, live_version

__all__ = ["LOCK_FILE", "OWNER_FILE", "collections_in_use", "locked", "next_version", "owner_of"]

LOCK_FILE = ".lock"
OWNER_FILE = ".owner"
"""A random id of the folder, which the names of its collections depend on: no two folders share one."""

_VERSION = re.compile(r"\d{8}T\d{12}Z-[0-9a-f]{8}")
"""Names that `publish` gives; whatever else lies in the folder is not ours to remove."""


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Publish alone: another run waits here, for the seconds that writing a bundle takes. Raises BundleError."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / LOCK_FILE).open("ab")
    except OSError as error:
        raise _unusable(root, error) from error
    with file:  # closing it gives the lock back, and so does the death of the process
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def owner_of(root: Path) -> str:
    """The id of a folder of bundles, 32 hex digits; made and kept when first asked for. Raises BundleError."""
    path = root / OWNER_FILE
    with locked(root):  # of two first builds at once, both get the same
        try:
            if path.exists():
                return path.read_text(encoding="utf-8").strip()
            owner = secrets.token_hex(16)
            write_text(path, owner + "\n")
        except OSError as error:
            raise _unusable(root, error) from error
    return owner


@contextmanager
def collections_in_use(root: Path) -> Iterator[frozenset[str]]:
    """Names of the collections that versions of this folder need; nobody publishes in the block."""
    with locked(root):
        yield _collections(root)


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
    for name in sorted(unneeded - _collections(index.bundles)):
        drop_collection(name, index)


def _versions(root: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in root.iterdir() if _VERSION.fullmatch(path.name) and path.is_dir())


def _collections(root: Path) -> frozenset[str]:
    return frozenset(collection.name for version in _versions(root) if (collection := collection_of(version)))


def _unusable(root: Path, error: OSError) -> BundleError:
    return BundleError(
        f"folder of bundles `{root}`",
        got=error.strerror or str(error),
        wanted="a folder that can be written to",
        fix="Correct its permissions, or name another one: --bundles FOLDER",
    )
