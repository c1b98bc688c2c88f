"""What this room must know about an architecture.

Legend: B sequences, L longest of them, H hidden size, D embedding dimension. Sequences are padded on the right;
`ids` and `mask` are `[B, L]` int64, and what is padding changes no row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from skillserve.card import Pooling, ScoreKind
from skillserve.errors import CardError
from skillserve.settings import TrainSettings
from skillserve.tensors import Ids, Role

__all__ = ["Family"]


class Family(ABC):
    """One architecture, as embedder and as reranker."""

    config: ClassVar[type[PretrainedConfig]]
    """Reads config.json; what the file leaves out has the architecture's defaults."""
    classes: ClassVar[dict[Role, type[PreTrainedModel]]]
    frames: ClassVar[dict[Role, str]]
    frame_tokens: ClassVar[dict[Role, tuple[str, ...]]]
    """Tokens of the frames that a tokenizer must know."""
    poolings: ClassVar[tuple[Pooling, ...]]
    """Those it can take; the first one is assumed where a base names none."""
    score_kind: ClassVar[ScoreKind]
    prompts: ClassVar[tuple[str, str] | None] = None
    """(query prompt, document prompt) that its recipe prescribes; none: those of the base."""

    def most_tokens(self, config: PretrainedConfig) -> int:
        """Longest sequence that a model has positions for."""
        return int(config.max_position_embeddings)

    @abstractmethod
    def open_embedder(self, folder: Path) -> PreTrainedModel:
        """The encoder in a folder; CardError or ConfigError if it holds none."""

    @abstractmethod
    def open_reranker(self, folder: Path, *, new_head: bool = False) -> PreTrainedModel:
        """The reranker in a folder; with `new_head` it may lack what `start_head` sets. CardError or ConfigError."""

    @abstractmethod
    def score_tokens(self, folder: Path) -> tuple[int, ...]:
        """Ids that scoring depends on, from the folder's tokenizer; CardError if it does not have them."""

    def embed(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, pooling: Pooling | None) -> Tensor:
        """Unit rows `[B, D]` float32; CardError for a pooling that is not the family's."""
        if pooling not in self.poolings:
            raise CardError(
                f"pooling of a {self.config.model_type}",
                got=str(pooling),
                wanted=f"one of {', '.join(self.poolings)}",
                fix="Write the card again: skillserve card",
            )
        return functional.normalize(self.pooled(model, ids, mask, pooling), dim=-1)

    @abstractmethod
    def pooled(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
        """One row per sequence, `[B, D]` float32, of any length."""

    @abstractmethod
    def score(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, tokens: tuple[int, ...]) -> Tensor:
        """Relevance logits `[B]` float32 of framed pairs; `tokens` are those of `score_tokens`."""

    def remembering(self, model: PreTrainedModel) -> AbstractContextManager[object]:  # noqa: ARG002
        """Within it, scoring may keep what it has read of a text for the next pair with it; here it keeps nothing."""
        return nullcontext()

    @abstractmethod
    def has_head(self, folder: Path) -> bool:
        """Whether the weights in a folder bring the head of a reranker that scores already."""

    @abstractmethod
    def start_head(
        self, model: PreTrainedModel, tokens: tuple[int, ...], skills: Sequence[Ids], settings: TrainSettings
    ) -> None:
        """Set the head of a reranker to where training begins; `skills` are those it will learn from, without frame."""

    @abstractmethod
    def head(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Modules of a reranker that start at nothing, and so learn faster than the rest."""

    @abstractmethod
    def embeddings(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Modules with a row for each token id, of an embedder or a reranker."""

    @abstractmethod
    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Layers, lowest first, of an embedder or a reranker."""
