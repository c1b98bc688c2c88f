"""How long the sequences are that a model will be asked: counted on the requests and skills of a collection."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer

from skillserve.card import ModelCard
from skillserve.collection import read_split
from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve_export.sample import spread

__all__ = ["served_lengths"]

_PAIRED = 64
"""Requests, and skills, of which a reranker's pairs are made: each with each, evenly spread over the data."""


def served_lengths(card: ModelCard, weights: Path, data: Path) -> Counter[int]:
    """Token length → sequences of the test split, cut and framed as in production.

    Embedder: every request and every skill once. Reranker: requests paired with skills. Raises CatalogueError for
    faulty data.
    """
    collection = read_split(data, "test")
    tokenizer = Tokenizer.from_file(str(weights / "tokenizer.json"))
    if card.role == "embedder":
        tokens = EmbedderTokens(card, tokenizer)
        requests = tokens.queries([query.text for query in collection.queries])
        return Counter([len(cut.ids) for cut in requests] + [len(ids) for ids in tokens.skills(collection.skills)])
    pairs = RerankerTokens(card, tokenizer)
    sides = pairs.skills(spread(list(collection.skills), _PAIRED))
    requests = pairs.queries([query.text for query in spread(list(collection.queries), _PAIRED)])
    return Counter(len(pairs.pair(cut.ids, side)) for cut in requests for side in sides)
