"""Where memory runs out, the knobs that help are named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from skillserve.errors import ConfigError
from skillserve.settings import TrainSettings

__all__ = ["memory_errors"]


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
