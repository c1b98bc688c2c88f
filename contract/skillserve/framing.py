"""From texts to framed token ids: the one place where a frame, a tokenizer and the limits of a card meet.

A sequence is put together from pieces (`skillserve.text.Frame`): literals that we wrote, tokenised once with special
tokens parsed, and slots that strangers filled, tokenised with special tokens NOT parsed, so `[SEP]` in a skill is
ordinary characters, and left out where the vocabulary itself spells it. Truncation and padding of tokenizer.json are
switched off: what is cut, and where, is decided here and told. A text is cut at its end; white space that its slot
carries behind it stays.

The caller loads the tokenizer (`tokenizers.Tokenizer`), so this package needs none itself, and training,
export and client read texts in exactly the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from skillserve.card import ModelCard
from skillserve.errors import CardError, QueryError
from skillserve.pairs import sides
from skillserve.records import Skill
from skillserve.tensors import Ids
from skillserve.text import Frame, Piece, document_text, query_text, skill_text

__all__ = ["CutText", "EmbedderTokens", "RerankerTokens", "TokenizerLike", "mend"]

_FIRST_CHARS_PER_TOKEN = 8
"""First guess of how many characters hold the tokens that are kept; English has 4 to 5 a token."""

_GROWTH = 4
"""How much more is read where the guess was too short."""

_SPARE_TOKENS = 8
"""Tokens that a shortened text must give beyond those kept: a cut can only change tokens right before it."""

_NOTHING = np.empty(0, np.int32)
"""No text in a slot."""

_UNREADABLE = "\U00013000"
"""A hieroglyph: tokenizers that have an id for what they do not know give it to this."""


def mend(text: str) -> str:
    """The text with lone surrogates (legal in JSON, not in UTF-8) replaced by U+FFFD; surrogate pairs are joined."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class EncodingLike(Protocol):
    """The part of `tokenizers.Encoding` that framing uses."""

    ids: list[int]


class AddedTokenLike(Protocol):
    """The part of `tokenizers.AddedToken` that framing uses."""

    content: str
    special: bool


class TokenizerLike(Protocol):
    """The part of `tokenizers.Tokenizer` that framing uses."""

    encode_special_tokens: bool

    def add_special_tokens(self, tokens: list[str], /) -> int:
        """Mark tokens as special."""

    def encode(self, text: str, /, *, add_special_tokens: bool) -> EncodingLike:
        """Token ids of one text."""

    def encode_batch_fast(self, texts: list[str], /, *, add_special_tokens: bool) -> Sequence[EncodingLike]:
        """Token ids of each text, in parallel."""

    def get_added_tokens_decoder(self) -> Mapping[int, AddedTokenLike]:
        """Tokens beside the vocabulary proper, by id."""

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:  # noqa: FBT001, FBT002 -- the library's own
        """How many token ids there are."""

    def no_padding(self) -> None:
        """Forget a padding that tokenizer.json configures."""

    def no_truncation(self) -> None:
        """Forget a truncation that tokenizer.json configures."""


@dataclass(frozen=True, slots=True)
class CutText:
    """Token ids of one text, and how long it was before it was cut."""

    ids: Ids
    """Framed for the embedder, bare for the reranker."""
    num_kept: int
    """Tokens of the text in `ids`, the frame not counted."""
    num_tokens: int
    """Tokens of the whole text."""
    estimated: bool
    """`num_tokens` is extrapolated, because only the beginning of a very long text was tokenised."""

    @property
    def num_cut(self) -> int:
        """Tokens that the model does not read."""
        return self.num_tokens - self.num_kept


class _Texts:
    """A tokenizer that treats every text as foreign and stops reading soon after the last token that is kept."""

    def __init__(self, card: ModelCard, tokenizer: TokenizerLike) -> None:
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        if size > card.vocab_size:
            raise CardError(
                f"tokenizer.json of {card.name}",
                got=f"{size} token ids",
                wanted=f"at most the {card.vocab_size} that the model knows",
                fix="The tokenizer belongs to another model: export the model again with `skillserve export`.",
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # Tokenizers leave some unmarked, such as Qwen3's `<think>`, which stands in its frame: nobody may forge it.
        # Runs of blanks, which ModernBERT adds for indented code, are no marks of any frame and stay as they are.
        added = {at: token for at, token in tokenizer.get_added_tokens_decoder().items() if token.content.strip()}
        tokenizer.add_special_tokens([token.content for token in added.values() if not token.special])
        frame = Frame.parse(card.frame)
        tokenizer.encode_special_tokens = False
        self.pieces: list[Ids | str] = [
            _ids(tokenizer.encode(piece.value, add_special_tokens=False).ids)
            if piece.kind == "literal"
            else piece.value
            for piece in frame.pieces
        ]
        self.num_frame = sum(len(piece) for piece in self.pieces if not isinstance(piece, str))
        tokenizer.encode_special_tokens = True
        unknown = tokenizer.encode(_UNREADABLE, add_special_tokens=False).ids
        self._is_mark = np.zeros(max(card.vocab_size, *added, 0) + 1, dtype=np.bool_)
        self._is_mark[list(added.keys() - set(unknown))] = True
        self._tokenizer = tokenizer
        self._slots = {piece.value: piece for piece in frame.pieces if piece.kind == "slot"}
        self._tails = {slot: self._tail(piece) for slot, piece in self._slots.items()}
        num_fixed = self.num_frame + sum(len(tail) for tail in self._tails.values())
        if num_fixed >= card.max_tokens:
            raise CardError(
                f"card of {card.name}",
                got=f"a frame of {num_fixed} tokens and max_tokens {card.max_tokens}",
                wanted="a frame that leaves room for text",
                fix="Raise max_tokens and write the card again: skillserve card",
            )

    def cut(self, slot: str, texts: Sequence[str], limit: int) -> list[CutText]:
        """Each text as its slot reads it, in at most `limit` tokens; long ones are tokenised only as far as needed."""
        around = self._slots[slot]
        mended = [around.before + mend(text) + around.after for text in texts]
        done: dict[int, CutText] = {}
        waiting = list(range(len(mended)))
        num_chars = max(limit, 1) * _FIRST_CHARS_PER_TOKEN
        while waiting:
            heads = [_head(mended[i], num_chars) for i in waiting]
            encodings = self._tokenizer.encode_batch_fast(heads, add_special_tokens=False)
            short: list[int] = []
            for i, head, encoding in zip(waiting, heads, encodings, strict=True):
                whole = len(head) == len(mended[i])
                found = len(encoding.ids)
                if not whole and found < limit + _SPARE_TOKENS:
                    short.append(i)
                    continue
                total = found if whole else round(found * len(mended[i]) / len(head))
                ids = self.shortened(slot, self._unmarked(_ids(encoding.ids)), limit)
                done[i] = CutText(ids=ids, num_kept=len(ids), num_tokens=total, estimated=not whole)
            waiting, num_chars = short, num_chars * _GROWTH
        return [done[i] for i in range(len(mended))]

    def shortened(self, slot: str, ids: Ids, limit: int) -> Ids:
        """At most `limit` ids, without the last ones of the text; what its slot carries behind it is kept."""
        if len(ids) <= limit:
            return ids
        tail = self._tails[slot]
        short: Ids = np.concatenate([ids[: max(limit - len(tail), 0)], tail])[:limit]
        return short

    def count(self, text: str) -> int:
        """Tokens of a short text."""
        return len(self._tokenizer.encode(mend(text), add_special_tokens=False).ids)

    def _unmarked(self, ids: Ids) -> Ids:
        """Without special tokens that a text spells out.

        Not parsing them is not enough: the pieces of a Unigram model, such as XLM-RoBERTa's, have `</s>` among them.
        """
        return ids[~self._is_mark[ids]]

    def _tail(self, slot: Piece) -> Ids:
        """White space behind a slot, read alone."""
        return _ids(self._tokenizer.encode(slot.after, add_special_tokens=False).ids)

    def framed(self, **slots: Ids) -> Ids:
        """Literals and slots in the frame's order, as one array."""
        return np.concatenate([slots[piece] if isinstance(piece, str) else piece for piece in self.pieces])


class EmbedderTokens:
    """Queries and skills as the embedder reads them: prompt and text in its frame. QueryError for a blank query."""

    def __init__(self, card: ModelCard, tokenizer: TokenizerLike) -> None:
        self.card = card
        self._texts = _Texts(card, tokenizer)
        self._num_prompt = self._texts.count(card.query_prompt)
        self.room = card.max_tokens - self._texts.num_frame
        """Tokens left for text inside the frame."""
        self._most_query = min(card.max_query_tokens, self.room)
        if self._num_prompt >= self._most_query:
            raise CardError(
                f"card of {card.name}",
                got=f"a query prompt of {self._num_prompt} tokens and room for {self._most_query}",
                wanted="a prompt that leaves room for the request",
                fix="Raise max_query_tokens and write the card again: skillserve card",
            )

    def query(self, text: str) -> CutText:
        """Framed ids of one request, cut to the card's max_query_tokens (prompt included)."""
        return self.queries([text])[0]

    def queries(self, texts: Sequence[str]) -> list[CutText]:
        """Framed ids of many requests."""
        return [whole for (whole,) in self.queries_in_pieces([(text,) for text in texts])]

    def queries_in_pieces(self, requests: Sequence[Sequence[str]]) -> list[list[CutText]]:
        """Framed ids of many requests, each given and returned with its parts behind it.

        A part is read as a request is, prompt included; for one that the tokenizer finds nothing in, the request is.
        """
        cuts = iter(self._read([piece for of_one in requests for piece in of_one]))
        found = []
        for of_one in requests:
            whole, *others = (next(cuts) for _ in of_one)
            if whole is None:
                raise QueryError(
                    "request",
                    got=f"{of_one[0][:40]!r}, which holds no readable text",
                    wanted="a request in words",
                    fix="Say what the skill should do: skillserve search 'resize images in a folder'",
                )
            found.append([whole, *(whole if part is None else part for part in others)])
        return found

    def skills(self, skills: Sequence[Skill]) -> list[Ids]:
        """Framed ids of skills, each cut so that the frame fits into the card's max_tokens."""
        texts = [document_text(self.card.document_prompt, skill) for skill in skills]
        return [self._framed(cut).ids for cut in self._texts.cut("text", texts, self.room)]

    def _read(self, texts: Sequence[str]) -> list[CutText | None]:
        """Framed ids of each text behind the query prompt; None for one without readable text."""
        cuts = self._texts.cut("text", [query_text(self.card.query_prompt, text) for text in texts], self._most_query)
        return [
            # A prompt that ends in a blank gives it away to the first word, so the whole may be no longer than it.
            None
            if not text.strip() or (cut.num_tokens <= self._num_prompt and not self._texts.count(text.strip()))
            else self._framed(cut)
            for text, cut in zip(texts, cuts, strict=True)
        ]

    def _framed(self, cut: CutText) -> CutText:
        return CutText(
            ids=self._texts.framed(text=cut.ids),
            num_kept=cut.num_kept,
            num_tokens=cut.num_tokens,
            estimated=cut.estimated,
        )


class RerankerTokens:
    """Pairs as the reranker reads them; the skill side is tokenised once, at indexing."""

    def __init__(self, card: ModelCard, tokenizer: TokenizerLike) -> None:
        self.card = card
        self._texts = _Texts(card, tokenizer)
        self.room = card.max_tokens - self._texts.num_frame
        """Tokens left for both texts inside the frame."""
        self._most_query = min(card.max_query_tokens, self.room)

    def query(self, text: str) -> CutText:
        """Bare ids of one request, cut to the card's max_query_tokens."""
        return self.queries([text])[0]

    def queries(self, texts: Sequence[str]) -> list[CutText]:
        """Bare ids of many requests."""
        return self._texts.cut("query", [query_text("", text) for text in texts], self._most_query)

    def skills(self, skills: Sequence[Skill]) -> list[Ids]:
        """Bare ids of skills, as the bundle stores them: as many as fit beside an empty request."""
        return [cut.ids for cut in self._texts.cut("skill", [skill_text(skill) for skill in skills], self.room)]

    def request_alone(self, query: Ids) -> Ids:
        """The request's side of its pairs, as a model reads it that reads sides apart (`skillserve.pairs`)."""
        return sides(self._texts.framed(query=query, skill=_NOTHING))[0]

    def skill_alone(self, skill: Ids, limit: int) -> Ids:
        """The skill's side, cut to `limit` tokens for whichever request."""
        side = self._texts.shortened("skill", skill, limit)
        return sides(self._texts.framed(query=_NOTHING, skill=side))[1]

    def pair(self, query: Ids, skill: Ids) -> Ids:
        """One framed pair of at most max_tokens; only the skill is cut."""
        side = self._texts.shortened("skill", skill, max(self.room - len(query), 0))
        return self._texts.framed(query=query, skill=side)


def _head(text: str, num_chars: int) -> str:
    """The first characters of a text, ended at white space where there is some in their last quarter."""
    if len(text) <= num_chars:
        return text
    head = text[:num_chars]
    shorter = head.rsplit(None, 1)[0] if not text[num_chars].isspace() else head
    return shorter if len(shorter) > num_chars * 3 // 4 else head


def _ids(ids: Sequence[int]) -> Ids:
    return np.array(ids, dtype=np.int32)
