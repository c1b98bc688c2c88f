"""Requests that never repeat: real ones first, then new ones put together from halves of real ones.

A repeated request would measure caches. There are seldom as many real requests as a load needs, so further ones
are made of the beginning of one and the end of another, cut between words: real language, real lengths on
average, and each text once. The report says how many of either kind there were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from skillserve.card import read_card
from skillserve.errors import CatalogueError
from skillserve.records import Skill
from skillserve.skillfile import read_queries, split_file
from skillserve.tensors import Ids
from skillserve_bench.messages import messages
from skillserve_client import ServedModel
from skillserve_client.tokens import embedder_tokens, reranker_tokens

__all__ = ["Supply", "TextSupply", "Texts", "embedder_supply", "read_texts", "reranker_supply"]

_MOST_TRIES = 1_000
"""Draws for one new text before the requests count as used up."""


class Texts:
    """An endless row of different requests, the same for the same seed."""

    def __init__(self, real: Sequence[str], *, seed: int, source: str) -> None:
        self._rng = np.random.default_rng(seed)
        distinct = list(dict.fromkeys(text.strip() for text in real if text.strip()))
        if not distinct:
            raise CatalogueError(
                f"`{source}`", got="no requests", wanted="at least one", fix="Name a file that has some with --data."
            )
        self._real = [distinct[i] for i in self._rng.permutation(len(distinct))]
        self._words = [text.split() for text in self._real]
        self._given = set(self._real)
        self._next = 0
        self._source = source
        self.num_composed = 0

    @property
    def num_real(self) -> int:
        """Real requests given out so far."""
        return self._next

    def take(self, num: int) -> list[str]:
        """The next ones; CatalogueError if the real ones are too few or too short to make so many different ones."""
        real = self._real[self._next : self._next + num]
        self._next += len(real)
        return real + [self._composed() for _ in range(num - len(real))]

    def _composed(self) -> str:
        for _ in range(_MOST_TRIES):
            first, second = (self._words[i] for i in self._rng.integers(len(self._words), size=2))
            head = first[: int(self._rng.integers(1, len(first) + 1))]
            tail = second[int(self._rng.integers(0, len(second))) :]
            text = " ".join(head + tail)
            if text not in self._given:
                self._given.add(text)
                self.num_composed += 1
                return text
        raise CatalogueError(
            f"`{self._source}`",
            got=f"{len(self._real)} requests, of which {len(self._given)} different ones could be made",
            wanted="more, or longer ones, since no request is sent twice",
            fix="Name a larger file with --data, or measure a shorter --length.",
        )


def read_texts(data: Path, *, seed: int) -> Texts:
    """The requests of the test split of a folder in SkillRet's layout; raises CatalogueError if there are none."""
    path = split_file(data, "queries", "test")
    return Texts([query.text for query in read_queries(path)], seed=seed, source=str(path))


class TextSupply:
    """Requests to a whole search, each text made a payload."""

    def __init__(self, texts: Texts, payload: Callable[[str], bytes]) -> None:
        self._texts, self._payload = texts, payload

    def take(self, num: int, *, each: int = 1) -> list[bytes]:
        """The next `num` requests; a search is about one text."""
        if each != 1:
            raise ValueError("a search takes one text")
        return [self._payload(text) for text in self._texts.take(num)]


class Supply:
    """Serialised requests of one model, each of some sequences that occur in no other request."""

    def __init__(self, model: ServedModel, draw: Callable[[int], list[Ids]]) -> None:
        self._model, self._draw = model, draw
        self._given: set[bytes] = set()
        self.lens: list[int] = []
        """Tokens of the sequences given out so far."""

    def take(self, num: int, *, each: int = 1) -> list[bytes]:
        """The next `num` requests of `each` sequences."""
        flat = self.sequences(num * each)
        return messages(self._model, [flat[i : i + each] for i in range(0, len(flat), each)])

    def sequences(self, num: int) -> list[Ids]:
        """The next sequences themselves; different texts that the model's limit makes equal count as one."""
        found: list[Ids] = []
        for _ in range(_MOST_TRIES):
            for sequence in self._draw(num - len(found)):
                if (key := sequence.tobytes()) not in self._given:
                    self._given.add(key)
                    found.append(sequence)
            if len(found) == num:
                self.lens += [len(sequence) for sequence in found]
                return found
        raise CatalogueError(
            f"requests for `{self._model.name}`",
            got=f"{len(self._given)} different ones",
            wanted="more, since no request is sent twice",
            fix="Name a larger file with --data, or measure a shorter --length.",
        )


def embedder_supply(model: ServedModel, folder: Path, texts: Texts) -> Supply:
    """Requests as the client embeds them, with the card and tokenizer in a model folder."""
    tokens = embedder_tokens(read_card(folder), (folder / "tokenizer.json").read_bytes())
    return Supply(model, lambda num: [cut.ids for cut in tokens.queries(texts.take(num))])


def reranker_supply(model: ServedModel, folder: Path, texts: Texts, skills: Sequence[Skill], *, seed: int) -> Supply:
    """Pairs as the client reranks them: each a new request with a random skill."""
    tokens = reranker_tokens(read_card(folder), (folder / "tokenizer.json").read_bytes())
    bare, rng = tokens.skills(skills), np.random.default_rng(seed)

    def pairs(num: int) -> list[Ids]:
        chosen = rng.integers(len(bare), size=num).tolist()
        queries = tokens.queries(texts.take(num))
        return [tokens.pair(query.ids, bare[row]) for query, row in zip(queries, chosen, strict=True)]

    return Supply(model, pairs)
