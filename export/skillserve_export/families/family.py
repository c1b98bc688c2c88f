"""What the export must know about an architecture, and what is the same for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from skillserve.card import ModelCard, Pooling, ScoreKind
from skillserve.errors import CardError
from skillserve.max_sim import Interaction
from skillserve.tensors import Role
from skillserve_export.layout import Limits
from skillserve_export.modules import PackedModel, PaddedEncoder, PaddedModel, UnitRows

__all__ = ["Family"]


class Family(ABC):
    """One architecture, as embedder and as reranker.

    A family gives its encoder of packed tokens and the head of its reranker; the rest is shared. Layers that work on
    single tokens are the transformers model's own: they take `[T, H]` as well as `[B, L, H]`.
    """

    classes: ClassVar[dict[Role, type[PreTrainedModel]]]
    poolings: ClassVar[tuple[Pooling, ...]] = ("mean", "cls")
    """Of embedders."""
    score_kind: ClassVar[ScoreKind] = "logit"
    """Of rerankers."""
    overrides: ClassVar[dict[str, object]] = {}
    """Fields of config.json that loading sets."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Tensors that the weights may lack, since no graph reads them, by how their names begin."""

    @abstractmethod
    def encoder(self, model: Any, card: ModelCard, folder: Path) -> nn.Module:
        """A loaded model → a module that takes a `PackedLayout` and gives hidden states `[T, H]`."""

    @abstractmethod
    def score_head(self, model: Any, folder: Path) -> nn.Module:
        """A loaded reranker → a module that takes pooled rows `[S, H]` and gives scores `[S]`."""

    def score_pooling(self, config: Any) -> Pooling:  # noqa: ARG002
        """What of a pair the head of a reranker reads."""
        return "cls"

    def most_tokens(self, config: Any) -> int:
        """Longest sequence that the model has positions for."""
        return int(config.max_position_embeddings)

    def padded_encoder(self, model: Any, card: ModelCard, folder: Path) -> nn.Module:  # noqa: ARG002
        """A loaded model → a module that takes ids and mask `[B, L]` and gives hidden states `[B, L, H]`."""
        return PaddedEncoder(model.base_model)

    def loading(self, folder: Path) -> Mapping[str, object]:  # noqa: ARG002
        """What loading sets, beside what it sets for all families."""
        return self.overrides

    def load(self, folder: Path, card: ModelCard) -> Any:
        """The transformers model of a weights folder, float32, evaluation mode; safetensors only, no remote code.

        Raises CardError if the card promises what the model does not have, or the weights are those of another one.
        """
        model, report = self.classes[card.role].from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            # "eager": the stock export traces attention as plain products, which the older opset can express.
            attn_implementation="eager",
            output_loading_info=True,
            **self.loading(folder),
        )
        # Left out by the weights, drawn at random by transformers: graph and reference would agree all the same.
        missing = sorted(name for name in report["missing_keys"] if not name.startswith(self.unused))
        if missing:
            raise CardError(
                f"weights in `{folder}`",
                got=f"no `{missing[0]}`" + (f" and {len(missing) - 1} more missing" if len(missing) > 1 else ""),
                wanted=f"all tensors of a {self.classes[card.role].__name__}, as the card's role and family ask for",
                fix="Write the card again with `skillserve card`, or train the model again.",
            )
        self._check_card(card, model.config)
        return model.eval()

    def packed(self, model: Any, card: ModelCard, folder: Path, max_request_tokens: int) -> nn.Module:
        """Wrap a loaded model as a module of the wire contract, sharing its weights."""
        limits = Limits(card.vocab_size, card.max_tokens, max_request_tokens)
        encoder = self.encoder(model, card, folder)
        head, pooling = self._head(model, card, folder)
        return PackedModel(encoder, head, pooling, limits, model.config).eval()

    def token_embedder(
        self,
        model: Any,  # noqa: ARG002
        card: ModelCard,
        folder: Path,  # noqa: ARG002
        max_request_tokens: int,  # noqa: ARG002
    ) -> nn.Module:
        """Wrap a loaded reranker as a module that gives rows of tokens; CardError where the family compares none."""
        raise _compares_no_tokens(card)

    def interaction(self, card: ModelCard, folder: Path) -> Interaction:  # noqa: ARG002
        """What scores are made with of those rows; CardError likewise."""
        raise _compares_no_tokens(card)

    def padded(self, model: Any, card: ModelCard, folder: Path) -> nn.Module:
        """Wrap a loaded model behind `input_ids` and `attention_mask` `[B, L]`."""
        encoder = self.padded_encoder(model, card, folder)
        head, pooling = self._head(model, card, folder)
        return PaddedModel(encoder, head, pooling, model.config).eval()

    def _head(self, model: Any, card: ModelCard, folder: Path) -> tuple[nn.Module, Pooling]:
        if card.pooling is None:
            return self.score_head(model, folder), self.score_pooling(model.config)
        return UnitRows() if card.normalised else nn.Identity(), card.pooling

    def _check_card(self, card: ModelCard, config: Any) -> None:
        """A card that promises more than the model has would let ids and positions past the guard."""
        embeds = card.role == "embedder"
        found: dict[str, tuple[object, object]] = {
            "vocab_size": (card.vocab_size, config.vocab_size),
            "max_tokens": (card.max_tokens, min(card.max_tokens, self.most_tokens(config))),
            "dim": (card.dim, config.hidden_size if embeds else None),
            "score_kind": (card.score_kind, "cosine" if embeds else self.score_kind),
        }
        if card.score_kind == "logit":
            found["labels"] = (1, config.num_labels)
        if embeds:
            found["pooling"] = (card.pooling, card.pooling if card.pooling in self.poolings else self.poolings[0])
        wrong = {name: pair for name, pair in found.items() if pair[0] != pair[1]}
        if wrong:
            raise CardError(
                f"card of `{card.name}`",
                got=", ".join(f"{name} {promised}" for name, (promised, _) in wrong.items()),
                wanted=", ".join(f"{name} {model}" for name, (_, model) in wrong.items()) + ", as the model has it",
                fix="Write the card again with `skillserve card`, or train the model again.",
            )


def _compares_no_tokens(card: ModelCard) -> CardError:
    return CardError(
        f"card of `{card.name}`",
        got=f"score kind {card.score_kind} of the family {card.family}, which reads pairs whole",
        wanted="a family that compares tokens, such as late-bert",
        fix="Write the card again with `skillserve card`, or train with --interaction late.",
    )
