"""Who may write to an output folder: one process at a time, and only the job whose results are in it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from skillserve.errors import OutputError
from skillserve_client.batch.receipts import AUDIT_FILES, MANIFEST_FILE, WRITTEN_BY, Identity, Manifest

__all__ = ["LOCK_FILE", "audit_files_in", "claimed", "os_errors", "require_same_job"]

LOCK_FILE = ".lock"


def require_same_job(folder: Path, identity: Identity, *, fresh: bool) -> Manifest | None:
    """The manifest of what this very job left in the folder; None if it is empty.

    With `fresh` it may hold another job of ours, and the answer is None, since what is there will go. Raises
    OutputError for another job, another version, or anything that is not ours.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        strangers = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        if strangers:
            raise _refused(folder, f"{strangers[0]} and no {MANIFEST_FILE}", fix="Name another folder: --out FOLDER")
        return None
    content = path.read_bytes()
    if not _is_ours(content):
        raise _refused(folder, f"a {MANIFEST_FILE} of something else", fix="Name another folder: --out FOLDER")
    if fresh:
        return None
    try:
        found = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise _refused(
            folder,
            f"a {MANIFEST_FILE} of another version, or damaged ({error.errors()[0]['msg']})",
            fix="Name another folder, or remove those results with --fresh.",
        ) from error
    if found.identity != identity:
        raise _refused(
            folder,
            f"results of {_difference(found.identity, identity)}",
            fix="Name another folder, or remove those results with --fresh.",
        )
    return found


def audit_files_in(folder: Path) -> frozenset[str]:
    """Tables of an audit that the manifest of a folder lists, whatever version wrote it: these are ours to remove."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return AUDIT_FILES & {entry["file"] for entry in json.loads((folder / MANIFEST_FILE).read_bytes())["shards"]}
    return frozenset()


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Write alone: a second process is refused. The death of this one gives the folder back."""
    with os_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        file = (path / LOCK_FILE).open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"output folder `{path}`",
                got="another process that writes to it",
                wanted="one run at a time",
                fix="Wait for it, or name another folder: --out FOLDER",
            ) from error
        yield


@contextmanager
def os_errors(path: Path, *, kept: str = "finished shards are kept") -> Iterator[None]:
    """Full disks and missing permissions in our own words."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"output folder `{path}`",
            got=error.strerror or str(error),
            wanted="room and permission to write",
            fix=f"Free space or correct the permissions, and run the command again: {kept}.",
        ) from error


def _refused(folder: Path, got: str, *, fix: str) -> OutputError:
    return OutputError(f"output folder `{folder}`", got=got, wanted="an empty folder, or one of the same job", fix=fix)


def _is_ours(content: bytes) -> bool:
    with suppress(ValueError):
        read = json.loads(content)
        return isinstance(read, dict) and read.get("written_by") == WRITTEN_BY
    return False


def _difference(found: Identity, wanted: Identity) -> str:
    """The first thing in which two identities differ, for people."""
    theirs, ours = (_flat(identity.model_dump(mode="json")) for identity in (found, wanted))
    name = next(key for key in sorted(theirs.keys() | ours.keys()) if theirs.get(key) != ours.get(key))
    return f"{name} {theirs.get(name, 'none')}, not {ours.get(name, 'none')}"


def _flat(content: dict[str, object], before: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        else:
            flat[before + key] = str(value)
    return flat
