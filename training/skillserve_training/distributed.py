"""Rows of all processes of a run that `torchrun` started; a single process sees its own."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

__all__ = ["gather_lists", "gather_rows", "is_main", "join_processes", "of_main", "wait_for_all"]

T = TypeVar("T")


def join_processes() -> None:
    """Meet the other processes of the run, if `torchrun` started several; the Trainer finds them joined."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        on_cpu = not torch.cuda.is_available()
        PartialState(cpu=on_cpu, backend="gloo" if on_cpu else None)


def is_main() -> bool:
    """True in the one process that talks and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    """Return when every process of the run has come here."""
    if distributed.is_initialized():
        distributed.barrier()


def of_main(value: T) -> T:
    """What the main process has found, in all of them: figures may differ in their last digit, decisions must not."""
    if not distributed.is_initialized():
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


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
    parts = _Gather.apply(torch.cat([rows, filling]))  # type: ignore[no-untyped-call]
    first = sum(sizes[: distributed.get_rank()])
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), first


class _Gather(Function):
    """The rows of every process, stacked `[W, n, D]`; the gradients that they all find for a row add up."""

    @staticmethod
    def forward(_: FunctionCtx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(_: FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        distributed.all_reduce(total)
        return total[distributed.get_rank()]
