"""The one check that an ONNX file passes before anybody loads it: export, verification, server, backend, benchmark.

A graph is a program with files. What could make it read, allocate or run something else than what was exported is
refused here: links, paths that leave its folder, too few bytes, operators of unknown domains or names, sizes beyond a
limit, damaged bytes, and contents of another digest. Rooms that have `onnx` add its own checker.

The graph digest is the SHA-256 over the lines `name:sha256` of its files in the order of their names, so that a graph
of one file and one with external data are named alike. The export stamps it into config.pbtxt.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from skillserve.errors import RepositoryError
from skillserve.graph_wire import MalformedGraph, Skeleton, TensorPlace, read_skeleton
from skillserve.publish import sha256_of
from skillserve.tensors import Precision

__all__ = [
    "CONTRIBUTED",
    "CONTRIB_DOMAIN",
    "KNOWN_CONTRIBUTED",
    "STANDARD_DOMAINS",
    "GraphFile",
    "check_graph",
    "digest_of_files",
]

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
CONTRIB_DOMAIN = "com.microsoft"
"""Operators that ONNX Runtime brings along itself, without a library of somebody else's. It has some hundred of them,
which no standard describes and few people read; so each is known by its name, and all others are refused."""
CONTRIBUTED: dict[Precision, frozenset[str]] = {
    "fp32": frozenset(),
    "bf16": frozenset(),
    "fp16": frozenset(),
    "int8": frozenset({"FusedMatMul", "MatMulIntegerToFloat"}),
    "w8": frozenset({"MatMulNBits"}),
    "w4": frozenset({"MatMulNBits"}),
}
"""Those of them that the export may write: where no standard operator does it, or several do it more slowly."""
KNOWN_CONTRIBUTED = frozenset().union(*CONTRIBUTED.values())
"""Those that a server may load."""

_MAX_PROTO_BYTES = (1 << 31) - 1
"""What protobuf parses at all."""
_LOCATION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
"""Plain names only: a runtime gives others a meaning, such as ONNX Runtime's tag for an address in memory."""
_ENTRIES = frozenset({"location", "offset", "length", "checksum"})
_EXPORT_AGAIN = "Do not serve it. Export it again: skillserve export WEIGHTS"


@dataclass(frozen=True, slots=True)
class GraphFile:
    """A graph that was checked."""

    path: Path
    names: tuple[str, ...]
    """Its files, relative to its folder, the model itself first."""
    num_bytes: int
    contributed: frozenset[str]
    """Operators of `com.microsoft` in it."""

    def digest(self) -> str:
        """The graph digest; reads all files."""
        return digest_of_files({name: sha256_of(self.path.parent / name) for name in self.names})


def digest_of_files(sha256: Mapping[str, str]) -> str:
    """The graph digest out of each file's SHA-256.

    >>> digest_of_files({"model.onnx": "0" * 64})[:12]
    '901aecb0adec'
    """
    lines = "".join(f"{name}:{sha256[name]}\n" for name in sorted(sha256))
    return hashlib.sha256(lines.encode()).hexdigest()


def check_graph(
    path: Path,
    *,
    digest: str | None = None,
    contributed: frozenset[str] = KNOWN_CONTRIBUTED,
    max_gib: float | None = None,
    checker: Callable[[Path], None] | None = None,
) -> GraphFile:
    """Check a graph and all its files; raises RepositoryError, and nothing else, for whatever stands there.

    `contributed` are the operators of `com.microsoft` that it may have, `digest` is what it must be. `checker` sees
    the path last, when everything else is in order; whatever it raises is a fault of the graph. Whoever can write
    into the folder can still exchange a file before it is loaded.
    """
    skeleton, size = _read(path)
    operators = _contributed(path, skeleton, contributed)
    ends = _ends(path, skeleton.external)
    sizes = {name: _external_size(path, name, end) for name, end in ends.items()}
    total = size + sum(sizes.values())
    if max_gib is not None and total > max_gib * (1 << 30):
        raise _refused(
            path,
            f"{total / (1 << 30):.2f} GiB in {1 + len(sizes)} files",
            f"at most {max_gib:g} GiB",
            fix="Raise --max-graph-gib, if this model is meant to be that large.",
        )
    graph = GraphFile(path, (path.name, *sorted(sizes)), total, operators)
    if digest is not None and (found := _digest(graph)) != digest:
        raise _refused(path, f"content with the graph digest {found[:12]}", f"{digest[:12]}, as it was exported")
    if checker is not None:
        try:
            checker(path)
        except Exception as error:
            words = " ".join(str(error).split())[:300]
            raise _refused(path, f"a model that its checker refuses ({type(error).__name__}: {words})") from error
    return graph


def _contributed(path: Path, skeleton: Skeleton, known: frozenset[str]) -> frozenset[str]:
    """The contributed operators of a graph, which has no others than these and standard ones."""
    wanted = f"only {', '.join(['standard operators', *_named(known)])}"
    domains = {domain for domain, _ in skeleton.operators}
    if foreign := sorted(domains - STANDARD_DOMAINS - {CONTRIB_DOMAIN}):
        raise _refused(path, f"operators of the domains {', '.join(map(repr, foreign))}", wanted)
    found = frozenset(name for domain, name in skeleton.operators if domain == CONTRIB_DOMAIN)
    if unknown := found - known:
        raise _refused(path, f"the operators {', '.join(_named(unknown))}", wanted)
    return found


def _named(operators: frozenset[str]) -> list[str]:
    return [f"{CONTRIB_DOMAIN}:{name}" for name in sorted(operators)]


def _read(path: Path) -> tuple[Skeleton, int]:
    with _opened(path, path) as (file, size):
        if size > _MAX_PROTO_BYTES:
            raise _refused(path, f"{size:,} bytes", "at most 2 GiB; weights beyond that belong into external data")
        try:
            return read_skeleton(file, size), size
        except MalformedGraph as error:
            raise _refused(path, f"no sound ONNX model: {error}") from error
        except OSError as error:
            raise _refused(path, error.strerror or str(error), "a file that can be read") from error


@contextmanager
def _opened(graph: Path, path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file under its only name, and its size; the last part of the path is not followed if it is a link."""
    wanted = "a regular file"
    try:
        # Not to wait for a pipe's writer either.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        got = f"a symbolic link at `{path.name}`" if path.is_symlink() else f"{path.name}: {error.strerror}"
        raise _refused(graph, got, wanted) from error
    with ExitStack() as stack:
        stack.callback(os.close, descriptor)
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise _refused(graph, f"`{path.name}`, which is no regular file", wanted)
        if facts.st_nlink != 1:
            raise _refused(
                graph,
                f"`{path.name}` under {facts.st_nlink} names (hard links)",
                "a file of its own, that nobody changes under another name",
                fix="Copy it instead of linking it: cp --reflink=auto",
            )
        yield stack.enter_context(os.fdopen(descriptor, "rb", closefd=False)), facts.st_size


def _ends(path: Path, tensors: list[TensorPlace]) -> dict[str, int]:
    """For each external file, the first byte behind all its tensors."""
    ends: dict[str, int] = {}
    for tensor in tensors:
        subject = f"tensor `{tensor.name}`"
        if unknown := tensor.entries.keys() - _ENTRIES:
            raise _refused(path, f"{subject} with external data of {sorted(unknown)}", f"only {sorted(_ENTRIES)}")
        location = tensor.entries.get("location", "")
        if not _LOCATION.fullmatch(location) or location == path.name:
            raise _refused(
                path, f"{subject} in `{location}`", "a plain path to another file, inside the graph's folder"
            )
        offset = _number(path, tensor, "offset", 0)
        length = _number(path, tensor, "length", tensor.num_bytes)
        if length != tensor.num_bytes:
            raise _refused(path, f"{subject} with {length} bytes", f"{tensor.num_bytes}, as its shape needs")
        ends[location] = max(ends.get(location, 0), offset + length)
    return ends


def _number(path: Path, tensor: TensorPlace, key: str, default: int) -> int:
    text = tensor.entries.get(key)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise _refused(path, f"tensor `{tensor.name}` with the {key} {text!r}", "a whole number of bytes")
    return int(text)


def _external_size(graph: Path, name: str, end: int) -> int:
    file = graph.parent / name
    for folder in list(file.relative_to(graph.parent).parents)[:-1]:
        if (graph.parent / folder).is_symlink():
            raise _refused(graph, f"a symbolic link at `{folder}`", "folders, not links")
    with _opened(graph, file) as (_, size):
        if size < end:
            raise _refused(graph, f"`{name}` with {size:,} bytes", f"{end:,}, which its tensors need")
        return size


def _digest(graph: GraphFile) -> str:
    try:
        return graph.digest()
    except OSError as error:
        raise _refused(graph.path, error.strerror or str(error), "files that can be read") from error


def _refused(
    path: Path, got: str, wanted: str = "a graph as `skillserve export` writes it", *, fix: str = _EXPORT_AGAIN
) -> RepositoryError:
    return RepositoryError(f"graph `{path}`", got=got, wanted=wanted, fix=fix)
