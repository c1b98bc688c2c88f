"""The texts on which a graph is judged: real ones, tokenised as in production."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from tokenizers import Tokenizer

from skillserve.card import ModelCard
from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.records import Query, Skill
from skillserve.skillfile import read_queries, read_skills, split_file
from skillserve.tensors import Ids
from skillserve_export.vocabulary import ANSWERS, OPENING, token_ids

__all__ = ["ParitySample", "load_sample", "spread", "tokens_of_scores"]

T = TypeVar("T")

_NUM_SKILLS = {"embedder": 64, "reranker": 12}
_NUM_QUERIES = {"embedder": 24, "reranker": 6}
_BRIEF_QUERIES = {"embedder": 1, "reranker": 2}
_BRIEF_WORDS, _BRIEF_CHARS = 8, 80


@dataclass(frozen=True, slots=True)
class ParitySample:
    """Sequences to run, and how their results make rankings."""

    sequences: list[Ids]
    """Embedder: requests, then skills. Reranker: the pairs of the first request, of the second, …"""
    num_queries: int
    num_skills: int
    tokens: tuple[int, ...] = ()
    """What scores are read with: a pair's separator, the answers `yes` and `no`, or what opens either side of a pair;
    nothing for embedders."""
    brief: tuple[Ids, ...] = ()
    """A few sequences of the same kind that cost a server next to nothing: it is asked them every few seconds, beside
    its work."""


def load_sample(card: ModelCard, weights: Path, data: Path | None) -> ParitySample:
    """Requests and skills from the test split of `data`, or made of random words of the vocabulary.

    Random words exercise the arithmetic as well as real ones; only the rankings mean less.
    """
    tokenizer = Tokenizer.from_file(str(weights / "tokenizer.json"))
    num_queries, num_skills = _NUM_QUERIES[card.role], _NUM_SKILLS[card.role]
    if data is None:
        queries, skills = _random_texts(tokenizer, num_queries, num_skills)
    else:
        queries = spread(read_queries(split_file(data, "queries", "test")), num_queries)
        skills = spread(read_skills(split_file(data, "skills", "test")), num_skills)
    sequences = _sequences(card, tokenizer, queries, skills)
    return ParitySample(
        sequences,
        len(queries),
        len(skills),
        tokens_of_scores(card, weights, sequences),
        tuple(_sequences(card, tokenizer, *_brief(queries[: _BRIEF_QUERIES[card.role]], skills))),
    )


def _sequences(card: ModelCard, tokenizer: Tokenizer, queries: list[Query], skills: list[Skill]) -> list[Ids]:
    """What a model of this role reads of them, in the order of `ParitySample.sequences`."""
    if card.role == "embedder":
        tokens = EmbedderTokens(card, tokenizer)
        return [cut.ids for cut in tokens.queries([query.text for query in queries])] + tokens.skills(skills)
    pairs = RerankerTokens(card, tokenizer)
    sides = pairs.skills(skills)
    return [pairs.pair(cut.ids, side) for cut in pairs.queries([q.text for q in queries]) for side in sides]


def _brief(queries: list[Query], skills: list[Skill]) -> tuple[list[Query], list[Skill]]:
    """The first words of requests, and of one skill; of texts without blanks the first characters."""

    def cut(text: str) -> str:
        return " ".join(text.split()[:_BRIEF_WORDS])[:_BRIEF_CHARS]

    return (
        [replace(query, text=cut(query.text)) for query in queries],
        [replace(skill, name=cut(skill.name), description=cut(skill.description), body="") for skill in skills[:1]],
    )


def tokens_of_scores(card: ModelCard, weights: Path, sequences: Sequence[Ids]) -> tuple[int, ...]:
    """What the stock export needs to read scores: see `ParitySample.tokens`."""
    if card.role == "embedder":
        return ()
    match card.score_kind:
        case "yes_no":
            return token_ids(weights, *ANSWERS)
        case "max_sim":
            return token_ids(weights, OPENING)
    return (int(sequences[0][-1]),)  # a pair of an encoder ends in its separator


def spread(items: list[T], count: int) -> list[T]:
    """At most `count` items, evenly spread over the list."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).astype(int))] if items else []


def _random_texts(tokenizer: Tokenizer, num_queries: int, num_skills: int) -> tuple[list[Query], list[Skill]]:
    rng = np.random.default_rng(0)
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha())

    def text(most: int) -> str:
        return " ".join(rng.choice(words, rng.integers(3, most)))

    queries = [Query(id=str(i), text=text(60)) for i in range(num_queries)]
    skills = [Skill(id=str(i), name=text(5), description=text(40), body=text(300)) for i in range(num_skills)]
    return queries, skills
