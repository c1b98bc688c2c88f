"""The one door to ONNX Runtime's sessions: where a graph runs that is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnxruntime as ort
from onnx import checker

from skillserve.errors import UsageError
from skillserve.graph_file import check_graph

__all__ = ["Device", "open_checked", "open_session", "runtime"]

Device = Literal["cpu", "cuda"]

_PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_OPTIONS: dict[Device, dict[str, str]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}
"""float32 is to mean that: by default CUDA multiplies with 10 bits of mantissa."""


def open_checked(path: Path, device: Device = "cpu") -> ort.InferenceSession:
    """A session for a graph whose files are checked before; RepositoryError."""
    check_graph(path, checker=checker.check_model)
    return open_session(path, device)


def open_session(graph: Path | bytes, device: Device = "cpu") -> ort.InferenceSession:
    """A session for a graph file or its bytes; raises UsageError if this machine or installation lacks the device."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what cannot be opened is raised, and told by whoever opens it
    wanted = _PROVIDERS[device]
    known = ort.get_available_providers()
    if wanted not in known:
        raise _lacking(device, f"an ONNX Runtime with {', '.join(known)}")
    source = graph if isinstance(graph, bytes) else str(graph)
    # Whatever CUDA has no kernel for runs on the CPU, as it does in a server.
    providers = {wanted: _OPTIONS[device]} | {_PROVIDERS["cpu"]: _OPTIONS["cpu"]}
    session = ort.InferenceSession(source, options, providers=list(providers.items()))
    if session.get_providers()[0] != wanted:  # ONNX Runtime falls back without an error
        raise _lacking(device, "no device that it can use")
    return session


def runtime(device: Device) -> str:
    """What runs graphs, for reports."""
    return f"onnxruntime {ort.__version__} on {device}"


def _lacking(device: Device, got: str) -> UsageError:
    return UsageError(
        f"device `{device}`",
        got=got,
        wanted=_PROVIDERS[device],
        fix="Run it where the GPU is, with its ONNX Runtime: pip install onnxruntime-gpu; or leave --device out.",
    )
