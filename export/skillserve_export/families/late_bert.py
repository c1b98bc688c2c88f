"""BERT with late interaction: a reranker that reads either side of a pair as an embedder reads a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from safetensors import safe_open
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedModel

from skillserve.card import ModelCard, ScoreKind
from skillserve.errors import CardError
from skillserve.max_sim import Interaction
from skillserve.tensors import Role
from skillserve_export.families.bert import BertEncoder
from skillserve_export.families.family import Family
from skillserve_export.late import LateScore, PackedLate, PaddedLate, TokenEmbedder
from skillserve_export.layout import Limits
from skillserve_export.vocabulary import OPENING, token_ids

__all__ = ["LateBert"]

_WEIGHTS = "token_weights"
_SCORE = ("window", "scale")


class LateBert(Family):
    """A BERT, and in its weights a weight for each token id; rerankers only."""

    classes: ClassVar[dict[Role, type[PreTrainedModel]]] = {"reranker": BertModel}
    score_kind: ClassVar[ScoreKind] = "max_sim"

    def encoder(self, model: Any, card: ModelCard, folder: Path) -> nn.Module:  # noqa: ARG002
        """That of single texts."""
        return BertEncoder(model)

    def score_head(self, model: Any, folder: Path) -> nn.Module:  # noqa: ARG002
        """None: scores come from the states of all tokens, see `skillserve_export.late`."""
        return nn.Identity()

    def loading(self, folder: Path) -> Mapping[str, object]:
        """BERT's own configuration, as which transformers and Optimum know the encoder."""
        facts = _facts(folder) | {"model_type": BertConfig.model_type}
        return {"config": BertConfig.from_dict(facts), "add_pooling_layer": False}

    def load(self, folder: Path, card: ModelCard) -> Any:
        """The encoder; CardError also for an embedder, and for weights that lack what scores are made with."""
        if card.role != "reranker":
            raise CardError(
                f"card of `{card.name}`",
                got=f"role {card.role}",
                wanted=f"reranker, the only role of the family {card.family}",
                fix="Train an embedder of the family bert: skillserve train embedder",
            )
        model = super().load(folder, card)
        _score(folder, card)
        return model

    def packed(self, model: Any, card: ModelCard, folder: Path, max_request_tokens: int) -> nn.Module:
        """Pairs are cut in two behind the guard."""
        limits = Limits(card.vocab_size, card.max_tokens, max_request_tokens)
        return PackedLate(self.encoder(model, card, folder), _score(folder, card), limits, model.config).eval()

    def token_embedder(self, model: Any, card: ModelCard, folder: Path, max_request_tokens: int) -> nn.Module:
        """Single texts, whose tokens are compared elsewhere."""
        limits = Limits(card.vocab_size, card.max_tokens, max_request_tokens)
        weights = _score(folder, card).weights
        return TokenEmbedder(self.encoder(model, card, folder), weights, limits, model.config).eval()

    def interaction(self, card: ModelCard, folder: Path) -> Interaction:
        """What the folder says of stretches and their scale."""
        return _score(folder, card).interaction

    def padded(self, model: Any, card: ModelCard, folder: Path) -> nn.Module:
        """Both sides in one row, each under its own mask."""
        return PaddedLate(model, _score(folder, card), model.config).eval()


def _facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return facts


def _score(folder: Path, card: ModelCard) -> LateScore:
    """What a weights folder says of scores; CardError for one that lacks it."""
    facts = _facts(folder)
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        weights = tensors.get_tensor(_WEIGHTS).float() if _WEIGHTS in tensors.keys() else None  # noqa: SIM118 -- no mapping
    faults = [f"no {name} in config.json" for name in _SCORE if name not in facts]
    if weights is None:
        faults.append(f"no `{_WEIGHTS}`")
    elif weights.shape != (card.vocab_size,):
        faults.append(f"`{_WEIGHTS}` of shape {tuple(weights.shape)}")
    elif not bool((weights >= 0).all()):
        faults.append(f"`{_WEIGHTS}` that are below 0, or no numbers")
    if faults or weights is None:
        raise CardError(
            f"weights in `{folder}`",
            got=", ".join(faults),
            wanted=f"window, scale, and `{_WEIGHTS}` [{card.vocab_size}] of at least 0, as the card's family asks for",
            fix="Train the model again: skillserve train reranker",
        )
    [opening] = token_ids(folder, OPENING)
    # No text is longer than the card's limit, so a wider window sees no more.
    return LateScore(opening, min(facts["window"], card.max_tokens), facts["scale"], weights)
