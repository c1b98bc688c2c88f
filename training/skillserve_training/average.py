"""Averaging embedders that began at the same weights: one model, as fast as any of them, that often ranks better.

Runs that differ in their order of rows or in their negatives end in one valley of the loss, and the mean of their
weights lies nearer to its middle than they do ("model soups", arXiv 2203.05482).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skillserve.card import ModelCard
from skillserve.console import talk
from skillserve.errors import ConfigError
from skillserve.settings import TrainSettings
from skillserve_training.base import Base
from skillserve_training.dataset import TrainingData, hold_out
from skillserve_training.evaluate import Embedder, ndcg
from skillserve_training.holdout import known_ndcg, require_unseen
from skillserve_training.precision import choose_precision
from skillserve_training.run import scope, versions
from skillserve_training.weights import embedder_tokens, open_embedder, write_trained

__all__ = ["average_embedders"]

_LEAST = 2
"""Models."""
_ITS_OWN = {"name", "digest", "training", "data_digest", "export"}
"""What two models on one base may differ in; where all else is the same, texts become the same ids."""


def average_embedders(data: TrainingData, models: Sequence[Base], settings: TrainSettings, out: Path) -> ModelCard:
    """Write the mean of the models' weights and measure it on the hold-out, which none of them may have seen.

    Raises ConfigError for models that are not all trained embedders on one base, with one tokenizer and one card.
    """
    cards = _cards(models)
    precision = choose_precision(settings.precision)
    to_train, to_choose = hold_out(data, share=settings.holdout_share)
    for card in cards:
        require_unseen(card, to_train, to_choose, share=settings.holdout_share)
    first, card = models[0], cards[0]
    model = open_embedder(first.folder)
    model.load_state_dict(_mean([open_embedder(base.folder).state_dict() for base in models]))
    embedder = Embedder(model, card, embedder_tokens(first.folder, card), precision)
    after = ndcg(embedder.rank(to_choose.queries, to_choose.skills), to_choose) if to_choose.queries else None
    alone = [known_ndcg(each, card, to_choose, precision) for each in cards]
    _warn_of_a_better_one(after, alone, models)
    training: dict[str, Any] = {
        "data": data.digest,
        "part": to_train.part_digest,
        "averaged": [
            {"name": each.name, "digest": each.digest, "holdout_ndcg_at_10": figure}
            for each, figure in zip(cards, alone, strict=True)
        ],
        "settings": {"holdout_share": settings.holdout_share},
        "precision": precision,
        "versions": versions(),
        **scope(to_train, to_choose),
        "holdout_ndcg_at_10": {"best_of_them": max((f for f in alone if f is not None), default=None), "after": after},
    }
    named = card.model_copy(
        update={"name": f"{first.upstream_name}-embedder", "data_digest": data.digest, "training": training}
    )
    return write_trained(out, model, first, named)


def _cards(models: Sequence[Base]) -> list[ModelCard]:
    """Those of all models; raises ConfigError where one does not belong to the others."""
    if len({model.identity for model in models}) < max(_LEAST, len(models)):
        raise ConfigError(
            "models to average",
            got=", ".join(model.name for model in models) or "none",
            wanted="two or more, each of them once",
            fix="Train another one with --seed 14, and name both.",
        )
    cards = [_card(model) for model in models]
    tokenizers = [(model.folder / "tokenizer.json").read_bytes() for model in models]
    shared = cards[0].model_dump(exclude=_ITS_OWN)
    for model, card, tokenizer in zip(models[1:], cards[1:], tokenizers[1:], strict=True):
        theirs = card.model_dump(exclude=_ITS_OWN)
        differing = [name for name, value in theirs.items() if value != shared[name]]
        differing += ["tokenizer.json"] if tokenizer != tokenizers[0] else []
        if differing:
            raise ConfigError(
                f"model `{model.folder}`",
                got=f"another {', '.join(differing)} than `{models[0].folder}` has",
                wanted="models that were trained from the same base, with the same limits",
                fix="Average runs of one recipe that differ in --seed, --mined or their number of epochs.",
            )
    return cards


def _card(model: Base) -> ModelCard:
    if model.card is None or model.card.role != "embedder" or not model.card.training:
        raise ConfigError(
            f"model `{model.folder}`",
            got="no card of a trained embedder",
            wanted="a weights folder that `skillserve train embedder` wrote",
            fix="Train it: skillserve train embedder --data DATA --out FOLDER",
        )
    return model.card


def _mean(weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Of each floating tensor, summed in float64, so that the order of the models changes no bit that counts."""
    return {
        name: torch.stack([each[name].double() for each in weights]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in weights[0].items()
    }


def _warn_of_a_better_one(after: float | None, alone: Sequence[float | None], models: Sequence[Base]) -> None:
    better = [
        f"{model.folder} ({figure:.4f})"
        for model, figure in zip(models, alone, strict=True)
        if figure is not None and after is not None and figure > after
    ]
    if better:
        talk(f"The average has {after:.4f} on the hold-out, less than {', '.join(better)} alone.")
