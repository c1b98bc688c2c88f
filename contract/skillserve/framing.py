"""From texts to framed token ids: the one place where a frame, a tokenizer and the limits of a card meet.

Works with a `tokenizers.Tokenizer` that the caller loads, so that this package needs no tokenizer itself.

Literals of the frame are tokenised with special tokens parsed, texts without: `[SEP]` in a skill is five
ordinary word pieces, never the separator. Only texts are cut, so the frame always survives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from skillserve.card import ModelCard
from skillserve.records import Skill
from skillserve.tensors import Ids
from skillserve.text import Frame, document_text, query_text, skill_text

__all__ = ["Framed", "Framer", "TokenizerLike"]

_MOST_CHARACTERS_PER_TOKEN = 32
"""Texts are cut to this many characters per allowed token before they are tokenised, so that a megabyte costs
what a page costs. Words of English have 4 to 6 characters a token; word pieces longer than 32 do not occur."""


class EncodingLike(Protocol):
    """The part of `tokenizers.Encoding` that framing uses."""

    ids: list[int]


class TokenizerLike(Protocol):
    """The part of `tokenizers.Tokenizer` that framing uses."""

    encode_special_tokens: bool

    def encode_batch_fast(self, texts: list[str], /, *, add_special_tokens: bool) -> Sequence[EncodingLike]:
        """Token ids of each text."""

    def no_padding(self) -> None:
        """Forget a padding that tokenizer.json configures."""

    def no_truncation(self) -> None:
        """Forget a truncation that tokenizer.json configures."""


@dataclass(frozen=True, slots=True)
class Framed:
    """Token ids of one text, and how much of it was left out."""

    ids: Ids
    """`[L]`"""
    num_cut: int
    """Tokens that did not fit; a lower bound for texts that were cut before tokenising."""


class Framer:
    """Texts of one model → token ids.

    An embedder frames whole sequences (`query`, `skills`). A reranker tokenises a request once
    (`query_side`) and each skill once (`skill_sides`), then joins them (`pair`).
    """

    def __init__(self, card: ModelCard, tokenizer: TokenizerLike) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.card = card
        self._tokenizer = tokenizer
        self._frame = Frame.parse(card.frame)
        literals = self._frame.literals
        tokenizer.encode_special_tokens = False
        parsed = tokenizer.encode_batch_fast(list(literals), add_special_tokens=False)
        tokenizer.encode_special_tokens = True
        self._literal_ids = dict(zip(literals, (_ids(encoding) for encoding in parsed), strict=True))
        framing = sum(len(self._literal_ids[piece.value]) for piece in self._frame.pieces if piece.kind == "literal")
        self.room = card.max_tokens - framing
        """Tokens left for texts inside the frame."""

    def query(self, text: str) -> Framed:
        """An embedder's request: prompt and text, cut to `max_query_tokens`, framed."""
        [(ids, num_cut)] = self._encode([query_text(self.card.query_prompt, text)], self.max_query_tokens)
        return Framed(self._fill(text=ids), num_cut)

    def skills(self, skills: Sequence[Skill]) -> list[Framed]:
        """An embedder's skills: prompt and skill text, cut to the room inside the frame, framed."""
        texts = [document_text(self.card.document_prompt, skill) for skill in skills]
        return [Framed(self._fill(text=ids), num_cut) for ids, num_cut in self._encode(texts, self.room)]

    def query_side(self, text: str) -> Framed:
        """A reranker's request without frame, cut to `max_query_tokens`."""
        [(ids, num_cut)] = self._encode([query_text("", text)], self.max_query_tokens)
        return Framed(ids, num_cut)

    def skill_sides(self, skills: Sequence[Skill]) -> list[Framed]:
        """A reranker's skills without frame, cut to what would fit beside an empty request."""
        return [Framed(*side) for side in self._encode([skill_text(skill) for skill in skills], self.room)]

    def pair(self, query: Ids, skill: Ids) -> Ids:
        """Frame a request with a skill; what does not fit is cut from the skill."""
        return self._fill(query=query, skill=skill[: max(self.room - len(query), 0)])

    @property
    def max_query_tokens(self) -> int:
        """The card's limit, or the room inside the frame if that is smaller."""
        return min(self.card.max_query_tokens, self.room)

    def _encode(self, texts: Sequence[str], limit: int) -> list[tuple[Ids, int]]:
        most = limit * _MOST_CHARACTERS_PER_TOKEN
        # Lone surrogates (from broken JSON escapes) have no UTF-8 form; "?" stands in for each.
        clean = [text[:most].encode("utf-8", "replace").decode("utf-8") for text in texts]
        encodings = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        sides = []
        for text, encoding in zip(texts, encodings, strict=True):
            ids = _ids(encoding)
            # Characters never tokenised count as one token per four, English's usual rate.
            num_cut = max(len(ids) - limit, 0) + max(len(text) - most, 0) // 4
            sides.append((ids[:limit], num_cut))
        return sides

    def _fill(self, **slots: Ids) -> Ids:
        return np.concatenate(
            [
                self._literal_ids[piece.value] if piece.kind == "literal" else slots[piece.value]
                for piece in self._frame.pieces
            ]
        )


def _ids(encoding: EncodingLike) -> Ids:
    return np.asarray(encoding.ids, np.int32)
