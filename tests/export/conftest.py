"""Weights folders of every family, random and small."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from skillserve.card import ModelCard, Pooling, ScoreKind, write_card
from skillserve.tensors import Ids, Role
from skillserve.text import (
    BERT_LATE_FRAME,
    BERT_PAIR_FRAME,
    BERT_SINGLE_FRAME,
    QWEN3_PAIR_FRAME,
    QWEN3_SINGLE_FRAME,
    XLM_ROBERTA_PAIR_FRAME,
    XLM_ROBERTA_SINGLE_FRAME,
)

FRAMES: dict[str, dict[Role, str]] = {
    "bert": {"embedder": BERT_SINGLE_FRAME, "reranker": BERT_PAIR_FRAME},
    "late-bert": {"reranker": BERT_LATE_FRAME},
    "modernbert": {"embedder": BERT_SINGLE_FRAME, "reranker": BERT_PAIR_FRAME},
    "xlm-roberta": {"embedder": XLM_ROBERTA_SINGLE_FRAME, "reranker": XLM_ROBERTA_PAIR_FRAME},
    "qwen3": {"embedder": QWEN3_SINGLE_FRAME, "reranker": QWEN3_PAIR_FRAME},
}

SCORE_KINDS: dict[str, ScoreKind] = {"qwen3": "yes_no", "late-bert": "max_sim"}
"""Of rerankers that are no classifiers."""


@pytest.fixture(scope="session")
def make_weights(make_base: Callable[..., Path]) -> Callable[..., Path]:
    """Write a random model with its card: `make(family, role, pooling, max_tokens=…, seed=…, **config)`."""

    def make(family: str, role: Role, pooling: Pooling | None, *, max_tokens: int, **facts: object) -> Path:
        folder = make_base(family, role, **facts)
        config = json.loads((folder / "config.json").read_bytes())
        embeds = role == "embedder"
        card = ModelCard(
            name=f"tiny-{family}-{role}",
            role=role,
            family=family,
            dim=config["hidden_size"] if embeds else None,
            vocab_size=config["vocab_size"],
            max_tokens=max_tokens,
            max_query_tokens=20,
            pooling=pooling,
            normalised=embeds,
            frame=FRAMES[family][role],
            score_kind="cosine" if embeds else SCORE_KINDS.get(family, "logit"),
            base_model="random",
            base_revision="0",
            licence="Apache-2.0",
        )
        write_card(folder, card)
        return folder

    return make


@pytest.fixture(scope="session")
def random_ids() -> Callable[..., Ids]:
    """Draw a sequence that a card allows: `draw(rng, card, length, tokens)`, with the tokens of the sample."""

    def draw(rng: np.random.Generator, card: ModelCard, length: int, tokens: Sequence[int]) -> Ids:
        ids = rng.integers(0, card.vocab_size, length).astype(np.int32)
        if card.score_kind == "max_sim":
            ids = np.resize(ids, max(length, 2))
            ids[[0, rng.integers(1, len(ids))]] = tokens
        return ids

    return draw
