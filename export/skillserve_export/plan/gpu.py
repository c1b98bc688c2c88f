"""The one door to the CUDA driver: the GPU that TensorRT builds on. Not verified on hardware.

The driver itself is asked, through its C library, since it honours CUDA_VISIBLE_DEVICES as TensorRT does, and since a
container that has TensorRT need not have a Python package for CUDA.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from skillserve.errors import UsageError

__all__ = ["Gpu", "first_gpu"]

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR, of cuda.h."""
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a plan depends on: it runs on this kind of GPU only."""

    name: str
    compute_capability: str
    """As `9.0`."""


def first_gpu(library: str = _LIBRARY) -> Gpu:
    """The first GPU in sight; raises UsageError if there is no driver or no GPU."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        raise _missing(f"no {library} ({error})") from error
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    steps = (
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDeviceGetName", (name, _NAME_BYTES, device)),
        ("cuDeviceGetAttribute", (ctypes.byref(major), _MAJOR, device)),
        ("cuDeviceGetAttribute", (ctypes.byref(minor), _MINOR, device)),
    )
    for function, arguments in steps:
        if code := getattr(cuda, function)(*arguments):
            raise _missing(f"error {code} of {function}")
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}")


def _missing(got: str) -> UsageError:
    return UsageError(
        "GPU of the plan",
        got=got,
        wanted="an NVIDIA GPU of the kind that will serve",
        fix="Run it where the GPU is, and start the container with --gpus device=0: see deploy/README.md.",
    )
