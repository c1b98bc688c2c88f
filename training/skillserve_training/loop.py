"""The training loop, the same for every model: AdamW, warm-up, cosine, clipped gradients, and a stop at NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillserve.console import progress
from skillserve.errors import ConfigError
from skillserve_training.families import family_of
from skillserve_training.recipe import Recipe

__all__ = ["LoopReport", "fit", "freeze", "learning_rate_share", "num_steps", "seed_all"]

B = TypeVar("B")

_WEIGHT_DECAY = 0.01
_LARGEST_GRADIENT_NORM = 1.0
_HEAD_RATE = 10.0
"""A head starts at nothing and the encoder at something good: the head learns this much faster."""
_SHARE_OF_REPORT = 0.1
"""First and final loss are means over this share of the steps, since single steps jump."""


@dataclass(frozen=True, slots=True)
class LoopReport:
    """What a run did, for the card."""

    steps: int
    seconds: float
    first_loss: float
    final_loss: float


def seed_all(seed: int) -> None:
    """Make every draw of torch the same again."""
    torch.manual_seed(seed)


def freeze(model: PreTrainedModel, num_layers: int) -> None:
    """Keep the embeddings and the lowest layers as they are.

    The embeddings are half of a small model's weights; a short run sees too few words to improve them.
    """
    family = family_of(model)
    for part in (*family.embeddings(model), *family.layers(model)[:num_layers]):
        part.requires_grad_(requires_grad=False)


def num_steps(num_pairs: int, recipe: Recipe) -> int:
    """Steps of a run: whole batches of each pass, at least one."""
    return max(1, round(recipe.epochs * max(1, num_pairs // recipe.batch_size)))


def fit(
    model: nn.Module,
    batches: Iterator[B],
    loss_of: Callable[[B], Tensor],
    recipe: Recipe,
    *,
    steps: int,
    head: Sequence[nn.Module] = (),
    title: str,
) -> LoopReport:
    """Train for `steps` batches. ConfigError names the step where a loss or gradient is not finite."""
    rates = _optimiser(model, head, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        rates, lambda step: learning_rate_share(step, steps, recipe.warmup_ratio)
    )
    losses: list[float] = []
    started = time.perf_counter()
    model.train()
    with progress(title, steps) as bar:
        for step in range(1, steps + 1):
            loss = loss_of(next(batches))
            rates.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT_NORM)
            losses.append(loss.item())
            if not (math.isfinite(losses[-1]) and math.isfinite(norm.item())):
                raise _diverged(step, steps, losses[-1], recipe.learning_rate)
            rates.step()
            schedule.step()
            bar.advance(note=f"loss {losses[-1]:.3f}")
    model.eval()
    few = max(1, round(steps * _SHARE_OF_REPORT))
    return LoopReport(
        steps=steps,
        seconds=round(time.perf_counter() - started, 1),
        first_loss=round(math.fsum(losses[:few]) / few, 4),
        final_loss=round(math.fsum(losses[-few:]) / few, 4),
    )


def _optimiser(model: nn.Module, head: Sequence[nn.Module], recipe: Recipe) -> torch.optim.AdamW:
    of_head = {id(weight) for module in head for weight in module.parameters()}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if id(weight) not in of_head], "lr": recipe.learning_rate},
        {"params": [weight for weight in trained if id(weight) in of_head], "lr": recipe.learning_rate * _HEAD_RATE},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=_WEIGHT_DECAY)


def learning_rate_share(step: int, steps: int, warmup_ratio: float) -> float:
    """Share of the peak rate: a straight rise, then half a cosine down to zero."""
    warmup = max(1, round(steps * warmup_ratio))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _diverged(step: int, steps: int, loss: float, rate: float) -> ConfigError:
    return ConfigError(
        f"training step {step} of {steps}",
        got=f"loss {loss} or its gradient is not finite",
        wanted="finite numbers; nothing was written",
        fix=f"Lower the learning rate: --learning-rate {rate / 10:g}",
    )
