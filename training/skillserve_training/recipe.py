"""A training run in full: the caller's settings, with what they leave open filled in for the role.

Defaults follow runs on held-out skills of the sample catalogue's train split, never the test split; the README has
their figures and says how little they are worth.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from skillserve.card import ModelCard
from skillserve.config import TrainSettings
from skillserve.errors import ConfigError
from skillserve.tensors import Role

__all__ = ["Precision", "Recipe", "recipe_for", "training_limits"]

Precision = Literal["float32", "bfloat16"]

_EPOCHS: dict[Role, float] = {"embedder": 2.0, "reranker": 1.0}
_BATCH_SIZE: dict[Role, int] = {"embedder": 32, "reranker": 4}
_LEARNING_RATE: dict[Role, float] = {"embedder": 1e-4, "reranker": 3e-4}
_TRAIN_TOKENS: dict[Role, int] = {"embedder": 128, "reranker": 160}
_FROZEN_SHARE: dict[Role, float] = {"embedder": 0.5, "reranker": 0.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Every number that a run depends on; it goes onto the card."""

    epochs: float
    batch_size: int
    learning_rate: float
    warmup_ratio: float
    train_tokens: int
    """Longest sequence in training; serving reads up to the card's max_tokens."""
    frozen_layers: int
    num_negatives: int
    holdout_share: float
    precision: Precision
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """The recipe as the card keeps it."""
        return asdict(self)


def recipe_for(role: Role, settings: TrainSettings, *, num_layers: int) -> Recipe:
    """The settings, completed by the role's defaults; ConfigError if no layer of the encoder would learn."""
    frozen = settings.frozen_layers
    if frozen is not None and frozen >= num_layers:
        raise ConfigError(
            "frozen layers",
            got=f"{frozen} of {num_layers}",
            wanted="a layer that learns",
            fix=f"Freeze fewer: --frozen-layers {num_layers - 1}",
        )
    return Recipe(
        epochs=settings.epochs or _EPOCHS[role],
        batch_size=settings.batch_size or _BATCH_SIZE[role],
        learning_rate=settings.learning_rate or _LEARNING_RATE[role],
        warmup_ratio=settings.warmup_ratio,
        train_tokens=min(settings.train_tokens or _TRAIN_TOKENS[role], settings.max_tokens),
        frozen_layers=int(num_layers * _FROZEN_SHARE[role]) if frozen is None else frozen,
        num_negatives=settings.num_negatives,
        holdout_share=settings.holdout_share,
        precision=_best_precision() if settings.precision == "auto" else settings.precision,
        seed=settings.seed,
    )


def _best_precision() -> Precision:
    """bfloat16 where the hardware multiplies it natively; elsewhere it is slower than float32."""
    features = torch.cpu.get_capabilities()
    native = torch.cuda.is_available() or features.get("avx512_bf16") or features.get("amx_bf16")
    return "bfloat16" if native else "float32"


def training_limits(card: ModelCard, recipe: Recipe) -> ModelCard:
    """The card with the shorter sequences of training; its tokens are made as serving does, only fewer."""
    max_tokens = min(card.max_tokens, recipe.train_tokens)
    return card.model_copy(
        update={"max_tokens": max_tokens, "max_query_tokens": min(card.max_query_tokens, max_tokens)}
    )
