"""Fine-tuning the reranker: of the skills that the first stage confuses, the fitting one is to score highest.

With a similarity weight it learns a correction: the loss sees `logit + similarity_weight · similarity`, which a search
ranks by, so the logit has to say only what the embedder does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skillserve.card import ModelCard
from skillserve.errors import ConfigError
from skillserve.fusion import fuse
from skillserve.records import Run
from skillserve.settings import TrainSettings
from skillserve_training.base import Base
from skillserve_training.cards import draft_card
from skillserve_training.checkpoints import Checkpoints
from skillserve_training.comparison import Comparison, RerankerTrainee
from skillserve_training.dataset import TrainingData, hold_out
from skillserve_training.distributed import join_processes
from skillserve_training.evaluate import Embedder, Reranker, ndcg
from skillserve_training.families import family_of
from skillserve_training.first_stage import FirstStage
from skillserve_training.limits import prepare, training_limits
from skillserve_training.lists import schedule_of_lists, tokenise_sides
from skillserve_training.mined import Mined
from skillserve_training.precision import Precision, choose_precision
from skillserve_training.run import identity, publish, summarise
from skillserve_training.trainer import fit
from skillserve_training.weights import (
    embedder_tokens,
    open_embedder,
    open_reranker,
    reranker_tokens,
    score_tokens,
)

__all__ = ["train_reranker"]

_DEPTH = 20
"""Candidates that are reranked when the hold-out is measured, as many as a search reranks by default."""
_WEIGHTS = (0.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0)
"""Similarity weights that are tried on the hold-out."""


def train_reranker(
    data: TrainingData,
    base: Base,
    embedder_base: Base,
    settings: TrainSettings,
    out: Path,
    *,
    mined: Mined | None = None,
) -> ModelCard:
    """Fine-tune, measure both stages on the hold-out, choose the similarity weight there, write the weights folder.

    Negatives are `mined`, or else those that the embedder ranks within the settings' window. A run that was stopped
    goes on from its checkpoint. Raises ConfigError for settings that do not fit, or a run that diverges or does not
    fit into memory.
    """
    join_processes()
    precision = choose_precision(settings.precision)
    model = prepare(open_reranker(base.folder, new_head=True), settings)
    if base.card is None or base.card.role != "reranker":
        family_of(model).start_head(model)
    tokens = score_tokens(base.folder)
    card = draft_card(base, "reranker", max_tokens=settings.max_tokens, max_query_tokens=settings.max_query_tokens)
    embedder = _first_stage(embedder_base, precision)
    _refuse_a_seen_hold_out(embedder.card, data, settings)
    to_train, to_choose = hold_out(data, share=settings.holdout_share)
    holdout = _Holdout(embedder, to_choose, settings.similarity_weight)
    texts = tokenise_sides(to_train, reranker_tokens(base.folder, training_limits(card, settings)))
    first_stage = FirstStage.of(embedder, to_train)
    negatives = mined.of(to_train) if mined else first_stage.negatives(texts.golds, settings)
    rows, steps = schedule_of_lists(texts, negatives, settings)
    run = identity(data, base, settings, embedder=embedder.card.digest, mined=mined.digest if mined else None)
    checkpoints = Checkpoints(out, run, fresh=settings.fresh)
    trainee = RerankerTrainee(model, tokens, precision)
    reranker = Reranker(model, reranker_tokens(base.folder, card), tokens, precision)
    course = fit(
        trainee,
        Comparison(texts, settings, first_stage if settings.similarity_weight else None),
        rows,
        steps,
        settings,
        checkpoints,
        measure=lambda: holdout.measure(reranker).reranked,
        title="reranker",
    )
    figures = holdout.measure(reranker)
    training = summarise(
        run,
        course,
        to_train,
        to_choose,
        {"embedder_only": figures.embedder_only, "logit_only": figures.logit_only, "reranked": figures.reranked},
    )
    named = card.model_copy(
        update={
            "name": f"{base.upstream_name}-reranker",
            "data_digest": data.digest,
            "similarity_weight": figures.weight,
            "training": training,
        }
    )
    return publish(out, model, base, named, course, checkpoints)


@dataclass(frozen=True, slots=True)
class _Figures:
    """NDCG@10 of the hold-out; all None without one."""

    embedder_only: float | None
    logit_only: float | None
    reranked: float | None
    """With the weight that does best."""
    weight: float


class _Holdout:
    """The first stage's candidates for held-out requests, ranked once and measured with every state of the reranker."""

    def __init__(self, embedder: Embedder, data: TrainingData, trained_weight: float) -> None:
        self._data = data
        self._trained_weight = trained_weight
        self._first = embedder.rank(data.queries, data.skills) if data.queries else {}

    def measure(self, reranker: Reranker) -> _Figures:
        """Both stages, with the similarity weight that does best: the one trained with, unless another is better."""
        if not self._first:
            return _Figures(None, None, None, self._trained_weight)
        logits = reranker.rerank(self._first, self._data.queries, self._data.skills, depth=_DEPTH)
        weights = sorted({self._trained_weight, *_WEIGHTS}, key=lambda weight: abs(weight - self._trained_weight))
        found = {weight: ndcg(self._fused(logits, weight), self._data) for weight in weights}
        best = max(found, key=lambda weight: found[weight])
        return _Figures(ndcg(self._first, self._data), found[0.0], found[best], best)

    def _fused(self, logits: Run, weight: float) -> Run:
        return {
            query: dict(
                zip(
                    found,
                    fuse(
                        np.array(list(found.values()), np.float32),
                        np.array([self._first[query][skill] for skill in found], np.float32),
                        weight,
                    ).tolist(),
                    strict=True,
                )
            )
            for query, found in logits.items()
        }


def _first_stage(base: Base, precision: Precision) -> Embedder:
    if base.card is None or base.card.role != "embedder":
        raise ConfigError(
            f"embedder `{base.folder}`",
            got="no card of an embedder",
            wanted="a weights folder that skillserve wrote",
            fix="Train one: skillserve train embedder, or write a stock one: skillserve card",
        )
    return Embedder(open_embedder(base.folder), base.card, embedder_tokens(base.folder, base.card), precision)


def _refuse_a_seen_hold_out(embedder: ModelCard, data: TrainingData, settings: TrainSettings) -> None:
    """An embedder trained on skills that are now held out would rank them unfairly well."""
    if embedder.data_digest != data.digest:
        return
    kept = float(embedder.training["settings"]["holdout_share"])
    if settings.holdout_share > kept:
        raise ConfigError(
            "hold-out of the reranker",
            got=f"a share of {settings.holdout_share:g} where the embedder kept {kept:g}, so it has seen the others",
            wanted="at most the embedder's share",
            fix=f"Run it again with --holdout-share {kept:g}",
        )
