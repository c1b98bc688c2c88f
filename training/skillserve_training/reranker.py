"""Fine-tuning the reranker: among skills that the embedder confuses, the fitting one is to score highest.

Listwise cross-entropy over one gold and its negatives. Negatives are drawn anew in every pass: half of them from
the top of the embedder's ranking of the training skills, the rest from all of them; other golds of the request
are never among them.
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
from skillserve.errors import ConfigError
from skillserve.framing import RerankerTokens
from skillserve.metrics import ranked
from skillserve.records import Run
from skillserve.tensors import Ids
from skillserve_training.base import Base
from skillserve_training.cards import draft_card
from skillserve_training.dataset import TrainingData, hold_out
from skillserve_training.evaluate import Embedder, Reranker, ndcg
from skillserve_training.families import family_of
from skillserve_training.forward import autocast, score
from skillserve_training.loop import fit, freeze, num_steps, seed_all
from skillserve_training.recipe import Recipe, recipe_for, training_limits
from skillserve_training.summary import summarise
from skillserve_training.weights import (
    embedder_tokens,
    open_embedder,
    open_reranker,
    reranker_tokens,
    score_tokens,
    write_trained,
)

__all__ = ["Candidates", "listwise_loss", "mine_candidates", "train_reranker"]

_NUM_HARD = 15
"""Hard negatives come from the first so many wrong skills of the embedder's ranking."""
_DEPTH = 20
"""Candidates that are reranked when the hold-out is measured, as many as a search reranks by default."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """For each pair of (request, gold) what it is told apart from; token ids without frame."""

    tokens: RerankerTokens
    requests: list[Ids]
    skills: list[Ids]
    golds: list[frozenset[int]]
    """Per request, the positions of its skills."""
    hard: list[list[int]]
    """Per request, positions of wrong skills that the embedder ranks highest, best first."""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """One pair for each request and gold."""
        return [(request, skill) for request, golds in enumerate(self.golds) for skill in sorted(golds)]

    def negatives(self, request: int, count: int, draw: random.Random) -> list[int]:
        """Up to `count` wrong skills: half of them hard, the rest random; fewer where the catalogue has no more."""
        chosen = draw.sample(self.hard[request], min((count + 1) // 2, len(self.hard[request])))
        taken = self.golds[request].union(chosen)
        others = [skill for skill in range(len(self.skills)) if skill not in taken]
        return chosen + draw.sample(others, min(count - len(chosen), len(others)))

    def batches(self, size: int, num_negatives: int, seed: int) -> Iterator[list[list[Ids]]]:
        """Batches without end: lists of framed pairs, the right one first; every pass is shuffled anew."""
        draw = random.Random(seed)  # noqa: S311 -- reproducible, not secret
        pairs = self.pairs
        while True:
            draw.shuffle(pairs)
            for start in range(0, max(1, len(pairs) - size + 1), size):
                yield [
                    [
                        self.tokens.pair(self.requests[request], self.skills[skill])
                        for skill in (gold, *self.negatives(request, num_negatives, draw))
                    ]
                    for request, gold in pairs[start : start + size]
                ]


def mine_candidates(data: TrainingData, run: Run, tokens: RerankerTokens) -> Candidates:
    """Requests and skills as the card of `tokens` has them read, with the wrong skills at the top of `run`."""
    position = {skill.id: i for i, skill in enumerate(data.skills)}
    return Candidates(
        tokens=tokens,
        requests=[cut.ids for cut in tokens.queries([query.text for query in data.queries])],
        skills=tokens.skills(data.skills),
        golds=[frozenset(position[skill] for skill in data.golds[query.id]) for query in data.queries],
        hard=[
            [position[skill] for skill in ranked(run[query.id]) if skill not in data.golds[query.id]][:_NUM_HARD]
            for query in data.queries
        ],
    )


def listwise_loss(lists: Sequence[Tensor]) -> Tensor:
    """Mean cross-entropy of the first logit of each list against the whole list."""
    return torch.stack([-functional.log_softmax(logits, dim=0)[0] for logits in lists]).mean()


def train_reranker(
    data: TrainingData, base: Base, embedder_base: Base, settings: TrainSettings, out: Path
) -> ModelCard:
    """Mine with the embedder, fine-tune, measure on the hold-out with and without reranking, write the folder."""
    seed_all(settings.seed)
    model = open_reranker(base.folder, new_head=True)
    family_of(model).start_head(model)
    recipe = recipe_for("reranker", settings, num_layers=model.config.num_hidden_layers)
    card = draft_card(base, "reranker", max_tokens=settings.max_tokens, max_query_tokens=settings.max_query_tokens)
    embedder = _mining_embedder(embedder_base, recipe)
    _refuse_a_seen_hold_out(embedder.card, data, recipe)
    to_train, to_choose = hold_out(data, share=recipe.holdout_share)

    most_golds = max(len(to_train.golds[query.id]) for query in to_train.queries)
    mined = embedder.rank(to_train.queries, to_train.skills, depth=_NUM_HARD + most_golds)
    candidates = mine_candidates(to_train, mined, reranker_tokens(base.folder, training_limits(card, recipe)))

    freeze(model, recipe.frozen_layers)
    tokens = score_tokens(base.folder)

    def loss_of(batch: list[list[Ids]]) -> Tensor:
        with autocast(recipe.precision, model.device):
            logits = score(model, [pair for pairs in batch for pair in pairs], tokens)
        return listwise_loss(torch.split(logits, [len(pairs) for pairs in batch]))

    report = fit(
        model,
        candidates.batches(recipe.batch_size, recipe.num_negatives, recipe.seed),
        loss_of,
        recipe,
        steps=num_steps(len(candidates.pairs), recipe),
        head=family_of(model).head(model),
        title="reranker",
    )

    def measure() -> dict[str, float | None]:
        if not to_choose.queries:
            return {"embedder_only": None, "reranked": None}
        first = embedder.rank(to_choose.queries, to_choose.skills)
        reranker = Reranker(model, reranker_tokens(base.folder, card), tokens, recipe.precision)
        second = reranker.rerank(first, to_choose.queries, to_choose.skills, depth=_DEPTH)
        return {"embedder_only": ndcg(first, to_choose), "reranked": ndcg(second, to_choose)}

    training = summarise(base, recipe, report, to_train, to_choose, measure()) | {"embedder": embedder.card.digest}
    named = card.model_copy(
        update={"name": f"{base.upstream_name}-reranker", "data_digest": data.digest, "training": training}
    )
    return write_trained(out, model, base, named)


def _mining_embedder(base: Base, recipe: Recipe) -> Embedder:
    if base.card is None or base.card.role != "embedder":
        raise ConfigError(
            f"embedder `{base.folder}`",
            got="no card of an embedder",
            wanted="a weights folder that skillserve wrote",
            fix="Train one: skillserve train embedder, or write a stock one: skillserve card",
        )
    tokens = embedder_tokens(base.folder, base.card)
    return Embedder(open_embedder(base.folder), base.card, tokens, recipe.precision)


def _refuse_a_seen_hold_out(embedder: ModelCard, data: TrainingData, recipe: Recipe) -> None:
    """An embedder trained on skills that are now held out would rank them unfairly well."""
    if embedder.data_digest != data.digest:
        return
    kept = float(embedder.training["recipe"]["holdout_share"])
    if recipe.holdout_share > kept:
        raise ConfigError(
            "hold-out of the reranker",
            got=f"a share of {recipe.holdout_share:g} where the embedder kept {kept:g}, so it has seen the others",
            wanted="at most the embedder's share",
            fix=f"Run it again with --holdout-share {kept:g}",
        )
