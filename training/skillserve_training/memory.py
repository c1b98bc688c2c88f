"""Memory of a run: where it runs out, the knobs that help are named; what is freed is kept for the next step."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from skillserve.errors import ConfigError
from skillserve.settings import TrainSettings

__all__ = ["keep_freed_memory", "memory_errors"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Numbers of glibc's malloc.h, which `mallopt(3)` describes."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, where glibc can: whether it does.

    By default every large tensor is mapped anew and unmapped again, and the system clears its pages each time: on two
    CPU cores a third of a training step. Memory then stays at a step's peak until the process ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    never = -1  # of an unsigned size: larger than any
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, never))


@contextmanager
def memory_errors(settings: TrainSettings, *, rows_of_sequences: int) -> Iterator[None]:
    """Turn what torch raises into a ConfigError; a step's row has so many sequences."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        held = settings.chunk_size or settings.batch_size * rows_of_sequences
        raise ConfigError(
            "memory for training",
            got=" ".join(str(error).split())[:200],
            wanted="room for a step",
            fix=f"Hold less at once: --chunk-size {max(1, held // 2)}, --gradient-checkpointing, shorter texts with "
            f"--train-tokens {max(8, settings.train_tokens // 2)}, or --batch-size {max(1, settings.batch_size // 2)}; "
            "where it runs out while the hold-out is measured, lower --max-tokens.",
        ) from error


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
