"""The one door to `tokenizers`: tokenizer.json becomes what `skillserve.framing` works with."""

from __future__ import annotations

from tokenizers import Tokenizer

from skillserve.card import ModelCard
from skillserve.errors import CardError
from skillserve.framing import EmbedderTokens, RerankerTokens

__all__ = ["embedder_tokens", "reranker_tokens"]


def embedder_tokens(card: ModelCard, tokenizer_json: bytes) -> EmbedderTokens:
    """Tokens of an embedder; raises CardError if the tokenizer is unreadable or not the card's."""
    return EmbedderTokens(card, _open(card, tokenizer_json))


def reranker_tokens(card: ModelCard, tokenizer_json: bytes) -> RerankerTokens:
    """Tokens of a reranker; raises CardError if the tokenizer is unreadable or not the card's."""
    return RerankerTokens(card, _open(card, tokenizer_json))


def _open(card: ModelCard, tokenizer_json: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise CardError(
            f"tokenizer.json of {card.name}",
            got=str(error),
            wanted="a file that the tokenizers library reads",
            fix="Export the model again: skillserve export WEIGHTS",
        ) from error
