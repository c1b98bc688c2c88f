"""Qwen3: a decoder that is read at its last token, as embedder, and asked for `yes` or `no`, as reranker.

After the model cards of Qwen3-Embedding and Qwen3-Reranker (arXiv 2506.05176) and SkillRet's scripts. Attention
is causal, so padding on the right is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from skillserve.card import Pooling, ScoreKind
from skillserve.settings import TrainSettings
from skillserve.tensors import Ids, Role
from skillserve.text import QWEN3_PAIR_FRAME, QWEN3_QUERY_PROMPT, QWEN3_SINGLE_FRAME
from skillserve_training.families.family import Family
from skillserve_training.families.loading import load
from skillserve_training.tokenizer import token_ids

__all__ = ["Qwen3"]

_ANSWERS = ("yes", "no")
_NO_DROPOUT = {"attention_dropout": 0.0}


class Qwen3(Family):
    """Qwen3, as Qwen3-Embedding, Qwen3-Reranker and what SkillRet made of them."""

    config = Qwen3Config
    classes: ClassVar[dict[Role, type[PreTrainedModel]]] = {"embedder": Qwen3Model, "reranker": Qwen3ForCausalLM}
    frames: ClassVar[dict[Role, str]] = {"embedder": QWEN3_SINGLE_FRAME, "reranker": QWEN3_PAIR_FRAME}
    frame_tokens: ClassVar[dict[Role, tuple[str, ...]]] = {
        "embedder": ("<|endoftext|>",),
        "reranker": ("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    }
    poolings: ClassVar[tuple[Pooling, ...]] = ("last",)
    score_kind: ClassVar[ScoreKind] = "yes_no"
    prompts: ClassVar[tuple[str, str]] = (QWEN3_QUERY_PROMPT, "")

    def open_embedder(self, folder: Path) -> PreTrainedModel:
        """The decoder; a language model's head beside it is left out."""
        return load(self.classes["embedder"], folder, config=_NO_DROPOUT)

    def open_reranker(self, folder: Path, *, new_head: bool = False) -> PreTrainedModel:  # noqa: ARG002
        """A language model: it can say `yes` and `no` already, so no head is ever new."""
        return load(self.classes["reranker"], folder, config=_NO_DROPOUT)

    def score_tokens(self, folder: Path) -> tuple[int, ...]:
        """The answers `yes` and `no`, each a single token."""
        return token_ids(folder, _ANSWERS)

    def pooled(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:  # noqa: ARG002
        """The last token, which alone has read all others."""
        return _last(model, ids, mask)

    def score(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, tokens: tuple[int, ...]) -> Tensor:
        """logit(yes) - logit(no) behind the last token, from their two rows of the head: never `[B, L, V]` logits."""
        last = _last(model.model, ids, mask)
        yes, no = model.lm_head.weight[list(tokens)].float()
        # Not as a matrix product, which autocast would round: in half precision strong candidates tie.
        gap: Tensor = (last * (yes - no)).sum(-1)
        return gap

    def has_head(self, folder: Path) -> bool:  # noqa: ARG002
        """A language model can answer already."""
        return True

    def start_head(
        self, model: PreTrainedModel, tokens: tuple[int, ...], skills: Sequence[Ids], settings: TrainSettings
    ) -> None:
        """Nothing to do: the rows of `yes` and `no` are trained already."""

    def head(self, model: PreTrainedModel) -> Sequence[nn.Module]:  # noqa: ARG002
        """None starts at nothing."""
        return ()

    def embeddings(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Words going in, and those coming out of a language model, which may be the same tensor."""
        tables = (model.get_input_embeddings(), model.get_output_embeddings())
        return tuple(table for table in tables if table is not None)

    def layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Of the decoder."""
        return tuple(model.base_model.layers)


def _last(decoder: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states `[B, H]` float32 of the last tokens."""
    # Without padding in the mask: it stands behind the last token, which a causal model never looks at, and any zero
    # in the mask would cost a `[B, 1, L, L]` one, and the fast kernels.
    hidden: Tensor = decoder(input_ids=ids, attention_mask=torch.ones_like(mask), use_cache=False).last_hidden_state
    return hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1].float()
