# ruff: noqa: D102, D106 - the names are theirs
"""A recording stand-in for the module `tensorrt`: it writes down which calls reach the door, and does nothing else.

It computes nothing and parses nothing; its "plan" is the list of what it was asked, so that tests see what would have
been built. Signatures are those of TensorRT 10.13 and 11 (NVIDIA's Python API reference). That TensorRT itself does
what these calls ask of it is not verified on hardware.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

Call = tuple[str, tuple[Any, ...]]


class RecordingTensorRT:
    """Stands where `import tensorrt` finds it; `calls` are in order."""

    __version__ = "10.13.3.9"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=0)
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    BuilderFlag = SimpleNamespace(TF32="tf32")

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.faults: list[str] = []
        self.builds_nothing = False
        self.known_timings = True

    def note(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments))

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    class Logger:
        WARNING = "warning"

        def __init__(self, severity: str) -> None:
            self.severity = severity

    def Builder(self, logger: Any) -> _Builder:  # noqa: N802 -- theirs
        return _Builder(self, logger)

    def OnnxParser(self, network: Any, logger: Any) -> _Parser:  # noqa: ARG002, N802 -- theirs
        return _Parser(self)


class _Builder:
    def __init__(self, trt: RecordingTensorRT, logger: Any) -> None:
        self.trt = trt
        self.logger = logger

    def create_network(self, flags: int) -> object:
        self.trt.note("create_network", flags)
        return object()

    def create_builder_config(self) -> _Config:
        return _Config(self.trt)

    def create_optimization_profile(self) -> _Shapes:
        return _Shapes(self.trt)

    def build_serialized_network(self, network: object, config: _Config) -> bytes | None:  # noqa: ARG002
        self.trt.note("build_serialized_network", config.builder_optimization_level)
        return None if self.trt.builds_nothing else json.dumps(self.trt.calls, default=str).encode()


class _Parser:
    def __init__(self, trt: RecordingTensorRT) -> None:
        self.trt = trt

    @property
    def num_errors(self) -> int:
        return len(self.trt.faults)

    def get_error(self, index: int) -> str:
        return self.trt.faults[index]

    def parse_from_file(self, path: str) -> bool:
        self.trt.note("parse_from_file", path)
        return not self.trt.faults


class _Config:
    def __init__(self, trt: RecordingTensorRT) -> None:
        self.trt = trt
        self.builder_optimization_level = -1

    def set_memory_pool_limit(self, pool: str, num_bytes: int) -> None:
        self.trt.note("set_memory_pool_limit", pool, num_bytes)

    def clear_flag(self, flag: str) -> None:
        self.trt.note("clear_flag", flag)

    def add_optimization_profile(self, shapes: _Shapes) -> int:  # noqa: ARG002
        self.trt.note("add_optimization_profile")
        return self.trt.names().count("add_optimization_profile") - 1

    def create_timing_cache(self, timings: bytes) -> SimpleNamespace:
        return SimpleNamespace(begun_with=timings, serialize=lambda: timings + b"+")

    def set_timing_cache(self, cache: SimpleNamespace, *, ignore_mismatch: bool) -> bool:
        self.trt.note("set_timing_cache", cache.begun_with, ignore_mismatch)
        return self.trt.known_timings or not cache.begun_with


class _Shapes:
    def __init__(self, trt: RecordingTensorRT) -> None:
        self.trt = trt

    def set_shape(self, name: str, low: object, best: object, high: object) -> None:
        self.trt.note("set_shape", name, low, best, high)
