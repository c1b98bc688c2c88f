"""What a training loop needs to know of a model and of what it shall learn; nothing of either role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["Objective", "Synchronise", "Trainee"]

Row_contra = TypeVar("Row_contra", contravariant=True)
Synchronise = Callable[[bool], AbstractContextManager[object]]
"""Whether the backward passes inside add up over all processes; only the last one of a step has to."""


class Trainee(nn.Module):
    """A pretrained model with the forward pass that its role needs; subclasses say which."""

    pretrained: PreTrainedModel

    def new_head(self) -> Sequence[nn.Module]:
        """Modules that begin untrained."""
        return ()


class Objective(Protocol, Generic[Row_contra]):
    """What a run minimises."""

    def num_tokens(self, rows: Sequence[Row_contra]) -> int:
        """Tokens that the model reads of these rows, padding not counted."""
        ...

    def backward(self, model: nn.Module, rows: Sequence[Row_contra], synchronise: Synchronise) -> Tensor:
        """Add the gradients of these rows to the weights; returns the detached loss of this process."""
