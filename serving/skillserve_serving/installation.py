"""Which Triton is run: the one that was named, else the one on PATH, else the embedded one.

A server that brings Triton's own ONNX Runtime backend uses it; any other runs our backend of the same name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from skillserve.errors import MissingExtraError, ServerStartError
from skillserve_serving.embedded import STUB, embedded_root, embedded_stub, lay_out_backends, shim_environment

__all__ = ["Installation", "find_installation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A server binary with what belongs to it."""

    kind: Literal["named", "path", "embedded"]
    binary: Path
    backends: Path
    """Its own backend directory."""
    stub: Path | None
    """Python stub that runs our backend; None if the server's own ONNX Runtime backend serves."""

    @property
    def embedded(self) -> bool:
        """Whether this is the development server from PyPI."""
        return self.kind == "embedded"

    def prepare(self, folder: Path) -> tuple[Path, Mapping[str, str]]:
        """Lay out what the server needs in `folder`; returns its backend directory and its environment."""
        if self.stub is None:
            return self.backends, dict(os.environ)
        environment = shim_environment(os.environ)
        return lay_out_backends(folder / "backends", self.backends / "python", self.stub, environment), environment


def find_installation(named: Path | None) -> Installation:
    """Choose the server.

    Raises ServerStartError if the named one cannot be used, MissingExtraError if there is none at all.
    """
    if named is not None:
        if not (named.is_file() and os.access(named, os.X_OK)):
            raise ServerStartError(
                f"server binary `{named}`",
                got="no program there",
                wanted="a tritonserver",
                fix="Correct --tritonserver, or leave it out to use the one on PATH or the embedded one.",
            )
        return _describe(named.resolve(), "named")
    if on_path := shutil.which("tritonserver"):
        return _describe(Path(on_path).resolve(), "path")
    return _embedded()


def _embedded() -> Installation:
    root = embedded_root()
    return Installation(
        kind="embedded",
        binary=root / "bin" / "tritonserver",
        backends=root / "backends",
        stub=embedded_stub(root),
    )


def _describe(binary: Path, kind: Literal["named", "path"]) -> Installation:
    if _is_embedded(binary):  # under whatever name it was reached: its limits go with it
        return _embedded()
    backends = binary.parent.parent / "backends"
    if (backends / "onnxruntime" / "libtriton_onnxruntime.so").is_file():
        return Installation(kind=kind, binary=binary, backends=backends, stub=None)
    stub = backends / "python" / STUB
    if not stub.is_file():
        raise ServerStartError(
            f"server binary `{binary}`",
            got=f"neither an ONNX Runtime nor a Python backend in `{backends}`",
            wanted="one of them",
            fix="Use a full Triton installation, such as the one in NVIDIA's container.",
        )
    return Installation(kind=kind, binary=binary, backends=backends, stub=stub)


def _is_embedded(binary: Path) -> bool:
    try:
        return binary.samefile(embedded_root() / "bin" / "tritonserver")
    except MissingExtraError:
        return False
