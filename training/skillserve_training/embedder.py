"""Fine-tuning the embedder: requests move towards their golds and away from the other skills of their batch.

Multiple-negatives ranking (Henderson et al., 2017, arXiv 1705.00652), in both directions, over cosine times a
scale. Legend: P pairs of a batch, Q different requests and S different skills in them, D dimension.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from skillserve.card import ModelCard
from skillserve.config import TrainSettings
from skillserve.framing import EmbedderTokens
from skillserve.tensors import Ids
from skillserve_training.base import Base
from skillserve_training.cards import draft_card
from skillserve_training.dataset import TrainingData, hold_out
from skillserve_training.evaluate import Embedder, ndcg
from skillserve_training.forward import autocast, embed
from skillserve_training.loop import fit, freeze, num_steps, seed_all
from skillserve_training.recipe import recipe_for, training_limits
from skillserve_training.summary import summarise
from skillserve_training.weights import embedder_tokens, open_embedder, write_trained

__all__ = ["Batch", "TokenisedPairs", "ranking_loss", "tokenise_pairs", "train_embedder"]

_SCALE = 20.0
"""Cosines are multiplied by this before the softmax, a temperature of 0.05, as sentence-transformers has it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: every request and every skill is in it once, however many pairs they are in."""

    requests: list[Ids]
    skills: list[Ids]
    gold: Tensor
    """`[Q, S]` bool; true where the skill fits the request, paired in this batch or not"""
    pairs: Tensor
    """`[P, 2]` int64; (row of the request, column of the skill)"""


@dataclass(frozen=True, slots=True)
class TokenisedPairs:
    """All training pairs of (request, gold) as token ids."""

    requests: list[Ids]
    skills: list[Ids]
    golds: list[frozenset[int]]
    """Per request, the positions of its skills."""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """One pair for each request and gold."""
        return [(request, skill) for request, golds in enumerate(self.golds) for skill in sorted(golds)]

    def batch(self, pairs: Sequence[tuple[int, int]]) -> Batch:
        """The batch that holds these pairs."""
        rows = sorted({request for request, _ in pairs})
        columns = sorted({skill for _, skill in pairs})
        return Batch(
            requests=[self.requests[row] for row in rows],
            skills=[self.skills[column] for column in columns],
            gold=torch.tensor([[column in self.golds[row] for column in columns] for row in rows]),
            pairs=torch.tensor([(rows.index(request), columns.index(skill)) for request, skill in pairs]),
        )

    def batches(self, size: int, seed: int) -> Iterator[Batch]:
        """Batches without end; every pass is shuffled anew, and what does not fill a batch waits for another pass."""
        draw = random.Random(seed)  # noqa: S311 -- reproducible, not secret
        pairs = self.pairs
        while True:
            draw.shuffle(pairs)
            for start in range(0, max(1, len(pairs) - size + 1), size):
                yield self.batch(pairs[start : start + size])


def tokenise_pairs(data: TrainingData, tokens: EmbedderTokens) -> TokenisedPairs:
    """Requests and skills as the card of `tokens` has them read."""
    position = {skill.id: i for i, skill in enumerate(data.skills)}
    return TokenisedPairs(
        requests=[cut.ids for cut in tokens.queries([query.text for query in data.queries])],
        skills=tokens.skills(data.skills),
        golds=[frozenset(position[skill] for skill in data.golds[query.id]) for query in data.queries],
    )


def ranking_loss(requests: Tensor, skills: Tensor, gold: Tensor, pairs: Tensor) -> Tensor:
    """Mean cross-entropy of each pair against the batch, over skills and over requests.

    Takes unit rows `[Q, D]` and `[S, D]`, and `gold` and `pairs` of the batch. A request's other golds are right
    answers too, so they are left out of the softmax instead of being negatives.
    """
    scores = _SCALE * requests @ skills.T
    rows, columns = pairs.unbind(1)
    over_skills = _one_direction(scores, gold, rows, columns)
    over_requests = _one_direction(scores.T, gold.T, columns, rows)
    return (over_skills + over_requests) / 2


def _one_direction(scores: Tensor, gold: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    other_golds = gold[rows]
    other_golds[torch.arange(len(rows)), columns] = False
    return functional.cross_entropy(scores[rows].masked_fill(other_golds, -torch.inf), columns)


def train_embedder(data: TrainingData, base: Base, settings: TrainSettings, out: Path) -> ModelCard:
    """Fine-tune, measure on the hold-out before and after, write the weights folder; returns its card."""
    model = open_embedder(base.folder)
    recipe = recipe_for("embedder", settings, num_layers=model.config.num_hidden_layers)
    card = draft_card(base, "embedder", max_tokens=settings.max_tokens, max_query_tokens=settings.max_query_tokens)
    to_train, to_choose = hold_out(data, share=recipe.holdout_share)
    seed_all(recipe.seed)
    embedder = Embedder(model, card, embedder_tokens(base.folder, card), recipe.precision)

    def measure() -> float | None:
        if not to_choose.queries:
            return None
        return ndcg(embedder.rank(to_choose.queries, to_choose.skills), to_choose)

    before = measure()
    pairs = tokenise_pairs(to_train, embedder_tokens(base.folder, training_limits(card, recipe)))
    freeze(model, recipe.frozen_layers)

    def loss_of(batch: Batch) -> Tensor:
        with autocast(recipe.precision, model.device):
            requests, skills = embed(model, batch.requests, card), embed(model, batch.skills, card)
        return ranking_loss(requests, skills, batch.gold.to(model.device), batch.pairs.to(model.device))

    report = fit(
        model,
        pairs.batches(recipe.batch_size, recipe.seed),
        loss_of,
        recipe,
        steps=num_steps(len(pairs.pairs), recipe),
        title="embedder",
    )
    training = summarise(base, recipe, report, to_train, to_choose, {"before": before, "after": measure()})
    named = card.model_copy(
        update={"name": f"{base.upstream_name}-embedder", "data_digest": data.digest, "training": training}
    )
    return write_trained(out, model, base, named)
