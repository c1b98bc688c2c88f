"""Rows of all processes of a run that `torchrun` started; a single process sees its own."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather

__all__ = ["gather_lists", "gather_rows", "is_main", "process_index", "wait_for_all"]


def process_index() -> int:
    """This process among those of the run, 0 where there is one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """True in the one process that measures, talks and writes."""
    return process_index() == 0


def wait_for_all() -> None:
    """Return when every process of the run has come here."""
    if distributed.is_initialized():
        distributed.barrier()


def gather_lists(values: list[int]) -> list[int]:
    """The numbers of all processes, in their order."""
    if not distributed.is_initialized():
        return values
    parts: list[list[int]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes, in their order, and where one's own begin; gradients flow back to their owners.

    Processes may hold different numbers of rows.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows, 0
    mine = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, mine)
    sizes = [int(count) for count in counts]
    filling = rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])
    parts = all_gather(torch.cat([rows, filling]))  # type: ignore[no-untyped-call]
    first = sum(sizes[: process_index()])
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), first
