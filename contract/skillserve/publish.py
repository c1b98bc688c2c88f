"""How skillserve writes things that others read: whole or not at all.

A file or folder is written under another name, flushed to disk, then renamed. A full disk, Ctrl-C or a kill
leaves the old state or the new one; `published_folder` says what that needs of the file system.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["published_file", "published_folder", "sha256_of", "write_bytes", "write_text"]

_CHUNK_BYTES = 1 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""As in Linux's fcntl.h and fs.h."""


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically and durably."""
    with published_file(path) as file:
        file.write(content)


@contextmanager
def published_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write into; when the block succeeds, flush it to disk and make it `path`, in one step.

    It is written beside `path` under a hidden name, which a killed writer leaves behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 file atomically and durably."""
    write_bytes(path, content.encode())


@contextmanager
def published_folder(target: Path) -> Iterator[Path]:
    """Yield an empty draft folder; when the block succeeds, flush it to disk and make it `target`.

    If the block or the flush fails, `target` is what it was. An existing target is exchanged for the draft in
    one step, and removed after that. Where the kernel or the file system cannot exchange, it is moved aside
    first: for a moment nothing stands at `target`, and a kill in that moment leaves nothing there until the next
    publication beside it puts the old folder back.

    Drafts stand in a hidden folder beside the target's parent, so nobody who lists the parent sees them. Only
    where the parent is a mount of its own, or its own parent may not be written, is that folder inside it.
    Drafts of writers that were killed are removed by the next publication; the hidden folder goes when empty.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    parent = target.parent.resolve()
    target = parent / target.name
    with _claimed(parent) as claim:
        draft = claim / "new"
        draft.mkdir()
        yield draft
        draft.chmod(0o755)
        for path in (*draft.rglob("*"), draft):
            if path.is_file() or path.is_dir():
                _sync(path)
        if not os.path.lexists(target):
            draft.rename(target)
        elif not _exchange(draft, target):
            retired = claim / "old" / target.name
            retired.parent.mkdir()
            target.rename(retired)
            draft.rename(target)
        _sync(parent)


@contextmanager
def _claimed(parent: Path) -> Iterator[Path]:
    """A folder for one draft, locked for as long as its writer lives."""
    drafts = _drafts_folder(parent)
    for claim in drafts.glob("*"):
        with suppress(OSError):  # its writer lives, or is somebody else
            _release(claim, _lock(claim), parent)
    claim, lock = _claim(drafts)
    try:
        yield claim
    finally:
        _release(claim, lock, parent)
        with suppress(OSError):  # others are writing
            drafts.rmdir()


def _drafts_folder(parent: Path) -> Path:
    name = f".{parent.name}.drafts"
    outside = parent.parent / name
    try:
        # Moves nothing, since no folder fits into itself; but the kernel looks at the mounts before it says so.
        os.rename(parent, os.path.join(parent, "."))  # noqa: PTH104, PTH118 -- a Path drops the dot
    except OSError as error:
        one_mount = error.errno == errno.EBUSY
    else:
        one_mount = False
    # In a shared folder such as /tmp, somebody else may have made it.
    ours = not os.path.lexists(outside) or outside.lstat().st_uid == os.geteuid()
    return outside if one_mount and ours and os.access(parent.parent, os.W_OK) else parent / name


def _claim(drafts: Path) -> tuple[Path, int]:
    """A new folder and its lock; tries again when another writer's sweep came in between."""
    while True:
        drafts.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError, BlockingIOError):
            claim = Path(tempfile.mkdtemp(dir=drafts))
            return claim, _lock(claim)


def _lock(claim: Path) -> int:
    """Descriptor that holds a draft; BlockingIOError if its writer lives, FileNotFoundError if it was removed."""
    # A file, since NFS locks no folders.
    path = claim / "lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.stat()
    except BaseException:
        os.close(lock)
        raise
    return lock


def _release(claim: Path, lock: int, parent: Path) -> None:
    """Remove a draft and what it replaced; an old folder that was not replaced after all goes back first."""
    try:
        for retired in claim.glob("old/*"):
            if not os.path.lexists(parent / retired.name):
                retired.rename(parent / retired.name)
        shutil.rmtree(claim, ignore_errors=True)
    finally:
        os.close(lock)
    with suppress(OSError):  # NFS keeps a removed file's folder until the file is closed
        claim.rmdir()


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the C library, the kernel or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    done: int = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
