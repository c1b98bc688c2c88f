"""The same weights in sentence-transformers: another tokeniser call, another graph, padding, no server, no index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skillserve.card import ModelCard, read_card
from skillserve.errors import MissingExtraError
from skillserve.framing import mend
from skillserve.records import Skill
from skillserve.text import document_text, query_text
from skillserve_client.wire import Floats

__all__ = ["PACKAGES", "SentenceTransformersPeer"]

PACKAGES = ("sentence-transformers", "transformers", "torch")
"""Distributions whose versions belong into a report."""

_BATCH_SIZE = 32


class SentenceTransformersPeer:
    """A weights folder as a SentenceTransformer, put together from what its card says; raises MissingExtraError."""

    def __init__(self, weights: Path) -> None:
        try:
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
        except ImportError as error:
            raise MissingExtraError(
                "baseline `sentence-transformers`",
                got=str(error),
                wanted="the training extra",
                fix="Install it: pip install 'skillserve[training]'",
            ) from error
        self.card: ModelCard = read_card(weights, verify_weights=True)
        transformer = Transformer(str(weights), max_seq_length=self.card.max_tokens)
        modules = [transformer, Pooling(self.card.dim, pooling_mode=self.card.pooling)]
        if self.card.normalised:
            modules.append(Normalize())
        self._model: Any = SentenceTransformer(modules=modules, device="cpu")
        num_frame = transformer.tokenizer.num_special_tokens_to_add()
        self._max_query_tokens = min(self.card.max_query_tokens + num_frame, self.card.max_tokens)

    def embed_skills(self, skills: Sequence[Skill]) -> Floats:
        """Embeddings `[n, D]` of skills, cut to the card's max_tokens."""
        texts = [document_text(self.card.document_prompt, skill) for skill in skills]
        return self._embed(texts, self.card.max_tokens)

    def embed_queries(self, texts: Sequence[str]) -> Floats:
        """Embeddings `[n, D]` of requests, cut to the card's max_query_tokens."""
        return self._embed([query_text(self.card.query_prompt, text) for text in texts], self._max_query_tokens)

    def _embed(self, texts: Sequence[str], max_tokens: int) -> Floats:
        self._model.max_seq_length = max_tokens
        vectors = self._model.encode(
            [mend(text) for text in texts], batch_size=_BATCH_SIZE, convert_to_numpy=True, show_progress_bar=True
        )
        return np.asarray(vectors, np.float32)
