"""The Triton that comes from PyPI inside `nvidia-pytriton`: a real server for development and tests.

It is release 24.10 without an ONNX Runtime backend. This module finds its parts and lays out a backend
directory in which our Python-based backend stands under that name:

    backends/python/{libtriton_python.so, triton_python_backend_utils.py, triton_python_backend_stub}
    backends/onnxruntime/model.py
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

from skillserve.errors import MissingExtraError, ServerStartError

__all__ = ["STUB", "embedded_root", "embedded_stub", "lay_out_backends", "shim_environment"]

STUB = "triton_python_backend_stub"
_BACKEND = Path(__file__).parent / "backends" / "onnxruntime" / "model.py"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_STUB_CHECK_S = 20


def embedded_root() -> Path:
    """Folder of the embedded server (`bin/`, `backends/`); raises MissingExtraError if it is not installed."""
    found = importlib.util.find_spec("pytriton")
    root = Path(found.origin).parent / "tritonserver" if found is not None and found.origin is not None else None
    if root is None or not (root / "bin" / "tritonserver").is_file():
        raise MissingExtraError(
            "the embedded Triton",
            got="no package `nvidia-pytriton` with a server in it",
            wanted="the serving extra, or a Triton of your own",
            fix="Install it: pip install 'skillserve[serving]', or name a server with --tritonserver.",
        )
    return root


def embedded_stub(root: Path) -> Path:
    """The stub for the running Python; raises ServerStartError if the embedded server has none."""
    stub = root / "python_backend_stubs" / _PYTHON / STUB
    if not stub.is_file():
        known = sorted(path.parent.name for path in root.glob(f"python_backend_stubs/*/{STUB}"))
        raise ServerStartError(
            "the embedded Triton",
            got=f"no stub for Python {_PYTHON}",
            wanted=f"Python {', '.join(known)}",
            fix="Run skillserve under one of these Python versions, or name a server with --tritonserver.",
        )
    return stub


def shim_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment in which a server's stub runs our backend with the packages of the running Python.

    Raises ServerStartError if this Python cannot be embedded: no shared libpython, or a `python3` that is another.
    """
    folder = Path(sys.executable).parent
    first = shutil.which("python3", path=str(folder))
    if first is None or not Path(first).samefile(sys.executable):
        raise ServerStartError(
            f"Python `{sys.executable}`",
            got=f"no `python3` beside it that is the same program (found {first})",
            wanted="one: Triton's stub takes its packages from the first `python3` on PATH",
            fix="Run skillserve from a virtual environment.",
        )
    libraries = [str(path) for path in (_libpython_folder(), _bundled_libraries()) if path is not None]
    return {
        **environ,
        "PATH": os.pathsep.join([str(folder), environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *filter(None, [environ.get("LD_LIBRARY_PATH")])]),
        # Our backend computes on the CPU. With a GPU in sight, the core would read KIND_AUTO as KIND_GPU.
        "CUDA_VISIBLE_DEVICES": "",
    }


def lay_out_backends(target: Path, python_backend: Path, stub: Path, environment: Mapping[str, str]) -> Path:
    """Write the backend directory into `target`; raises ServerStartError if the stub cannot run here.

    Real copies: Triton refuses a library that is a link. They take milliseconds, so that every server gets its
    own and none is ever changed under a running one.
    """
    python, shim = target / "python", target / "onnxruntime"
    python.mkdir(parents=True)
    shim.mkdir()
    for part in python_backend.iterdir():
        if part.is_file():
            shutil.copy2(part, python / part.name)
    shutil.copy2(stub, python / STUB)
    (python / STUB).chmod(0o755)
    shutil.copy2(_BACKEND, shim / _BACKEND.name)
    _check_stub(python / STUB, environment)
    return target


def _check_stub(stub: Path, environment: Mapping[str, str]) -> None:
    """Start the stub once without arguments: one that cannot load would leave the server `loading` for ever."""
    try:
        tried = subprocess.run(
            [stub], env=environment, capture_output=True, text=True, timeout=_STUB_CHECK_S, check=False
        )
        complaint = tried.stderr.strip() if "error while loading" in tried.stderr else ""
        cause = None
    except (OSError, subprocess.TimeoutExpired) as error:
        complaint, cause = str(error), error
    if complaint:
        raise ServerStartError(
            f"Triton's stub for Python {_PYTHON}",
            got=complaint.splitlines()[-1],
            wanted="a stub that runs",
            fix="Use a Python with a shared libpython (pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared), "
            "and a TMPDIR that allows programs.",
        ) from cause


def _libpython_folder() -> Path:
    library = f"libpython{_PYTHON}.so.1.0"
    for folder in _library_folders():
        if (folder / library).is_file():
            return folder
    raise ServerStartError(
        f"Python `{sys.base_prefix}`",
        got=f"no {library}",
        wanted="a Python built with --enable-shared: Triton's stub embeds it",
        fix="Install a shared libpython (Debian: libpython3-dev; pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared).",
    )


def _library_folders() -> Iterator[Path]:
    configured = sysconfig.get_config_var("LIBDIR")
    if configured:
        yield Path(configured)
        yield Path(configured, sysconfig.get_config_var("MULTIARCH") or "")
    # Relocated builds carry the LIBDIR of the machine that they were built on.
    yield Path(sys.base_prefix, "lib")


def _bundled_libraries() -> Path | None:
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent.parent / "nvidia_pytriton.libs"
