"""What of a model a run trains, and how much of each text it reads."""

from __future__ import annotations

from typing import TypeVar

from transformers import PreTrainedModel

from skillserve.card import ModelCard
from skillserve.errors import ConfigError
from skillserve.settings import TrainSettings
from skillserve_training.families import family_of

__all__ = ["prepare", "training_limits"]

M = TypeVar("M", bound=PreTrainedModel)


def prepare(model: M, settings: TrainSettings) -> M:
    """Freeze and set up as the settings say; ConfigError if no layer would learn."""
    layers = family_of(model).layers(model)
    if settings.frozen_layers >= len(layers):
        raise ConfigError(
            "frozen layers",
            got=f"{settings.frozen_layers} of {len(layers)}",
            wanted="a layer that learns",
            fix=f"Freeze fewer: --frozen-layers {len(layers) - 1}",
        )
    embeddings = family_of(model).embeddings(model) if settings.freeze_embeddings else ()
    for part in (*embeddings, *layers[: settings.frozen_layers]):
        part.requires_grad_(requires_grad=False)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def training_limits(card: ModelCard, settings: TrainSettings) -> ModelCard:
    """The card with the shorter sequences of training; its tokens are made as serving does, only fewer."""
    max_tokens = min(card.max_tokens, settings.train_tokens)
    wanted = settings.train_query_tokens or card.max_query_tokens
    return card.model_copy(
        update={"max_tokens": max_tokens, "max_query_tokens": min(card.max_query_tokens, wanted, max_tokens)}
    )
