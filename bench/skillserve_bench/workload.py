"""The sequences that are sent: lengths drawn from a seed, ids from real requests or at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skillserve.card import ModelCard, read_card
from skillserve.errors import CatalogueError
from skillserve.skillfile import read_queries, split_file
from skillserve.tensors import Ids
from skillserve_client import ServedModel
from skillserve_client.tokens import embedder_tokens

__all__ = ["LONGEST", "SHORTEST", "Workload", "longest_for", "make_workload", "mixed_lengths"]

SHORTEST, LONGEST = 5, 60
"""Tokens of a request, frame included: from two words to a long paragraph of a request."""

_REQUESTS_JOINED = 4
"""Requests put one behind another before they are cut, so that even short ones fill the longest sequence."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Sequences in the order in which they are sent, and where they come from."""

    sequences: tuple[Ids, ...]
    source: str

    @property
    def lengths(self) -> str:
        """`5 to 60 tokens`."""
        lens = [len(sequence) for sequence in self.sequences]
        return f"{min(lens)} to {max(lens)} tokens"

    @property
    def mean_tokens(self) -> float:
        """Mean length."""
        return float(np.mean([len(sequence) for sequence in self.sequences]))


def mixed_lengths(num: int, *, longest: int = LONGEST, seed: int) -> list[int]:
    """Lengths drawn evenly from SHORTEST to `longest`."""
    drawn: list[int] = np.random.default_rng(seed).integers(SHORTEST, longest + 1, size=num).tolist()
    return drawn


def longest_for(model: ServedModel) -> int:
    """LONGEST, or what the model reads if that is less."""
    return min(LONGEST, model.max_sequence_tokens or LONGEST)


def make_workload(model_folder: Path, lens: Sequence[int], *, data: Path | None, seed: int) -> Workload:
    """One sequence of each given length, for the model whose card and tokenizer stand in a folder.

    With `data`, a folder in SkillRet's layout, they are requests of its test split, cut by the client's own
    tokeniser. Raises CatalogueError if there is no such split, or its requests are too short.
    """
    card = read_card(model_folder)
    if data is None:
        return Workload(tuple(_random_ids(card, lens, seed)), "random token ids")
    path = split_file(data, "queries", "test")
    texts = [query.text for query in read_queries(path)]
    if not texts:
        raise CatalogueError(
            f"`{path}`", got="no requests", wanted="at least one", fix="Leave --data out to send random token ids."
        )
    chosen = np.random.default_rng(seed).integers(len(texts), size=(len(lens), _REQUESTS_JOINED))
    joined = [" ".join(texts[i] for i in row) for row in chosen.tolist()]
    tokenizer_json = (model_folder / "tokenizer.json").read_bytes()
    sequences: list[Ids] = [np.empty(0, np.int32)] * len(lens)
    for length in sorted(set(lens)):
        members = [i for i, each in enumerate(lens) if each == length]
        tokens = embedder_tokens(_limited(card, length), tokenizer_json)
        for i, cut in zip(members, tokens.queries([joined[i] for i in members]), strict=True):
            sequences[i] = cut.ids
            if len(cut.ids) != length:
                raise CatalogueError(
                    f"`{path}`",
                    got=f"{_REQUESTS_JOINED} requests of {len(cut.ids)} tokens together",
                    wanted=f"at least {length}",
                    fix="Leave --data out to send random token ids.",
                )
    return Workload(tuple(sequences), f"requests of {path.parent.parent.name}'s test split, cut to the drawn lengths")


def _limited(card: ModelCard, length: int) -> ModelCard:
    """The card of a model that reads at most `length` tokens, frame included, and all of them from the request."""
    return card.model_copy(update={"max_tokens": length, "max_query_tokens": length, "query_prompt": ""})


def _random_ids(card: ModelCard, lens: Sequence[int], seed: int) -> list[Ids]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, card.vocab_size, size=length, dtype=np.int32) for length in lens]
