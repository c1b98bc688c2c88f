"""Fine-tuning the reranker: of the skills that the first stage confuses, the fitting one is to score highest.

With a similarity weight it learns a correction: the loss sees `logit + similarity_weight · first-stage score`, which a
search ranks by, so the logit has to say only what the first stage does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from skillserve.card import ModelCard
from skillserve.errors import ConfigError
from skillserve.fusion import FirstStageWeights
from skillserve.lexical import require_bm25s
from skillserve.settings import TrainSettings, window
from skillserve_training.base import Base
from skillserve_training.candidates import nearest_wrong_skills
from skillserve_training.cards import draft_card
from skillserve_training.checkpoints import Checkpoints
from skillserve_training.comparison import Comparison, RerankerTrainee
from skillserve_training.dataset import TrainingData, hold_out
from skillserve_training.distributed import join_processes
from skillserve_training.evaluate import Embedder, Reranker
from skillserve_training.families import family_of
from skillserve_training.holdout import RerankerHoldout, require_unseen
from skillserve_training.limits import prepare, training_limits
from skillserve_training.lists import schedule_of_lists, tokenise_sides
from skillserve_training.memory import memory_errors
from skillserve_training.mined import Mined
from skillserve_training.nearness import Nearness
from skillserve_training.precision import Precision, choose_precision
from skillserve_training.run import identity, publish, summarise
from skillserve_training.systems import FirstStage
from skillserve_training.trainer import fit
from skillserve_training.weights import (
    embedder_tokens,
    open_embedder,
    open_reranker,
    reranker_tokens,
    score_tokens,
)

__all__ = ["train_reranker"]


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

    Negatives are `mined`, or else those that the first stage ranks within the settings' window. A run that was stopped
    goes on from its checkpoint. Raises ConfigError for settings that do not fit, or a run that diverges or does not
    fit into memory.
    """
    join_processes()
    if settings.lexical_weight:
        require_bm25s(extra="training")
    torch.manual_seed(settings.seed)  # a new head is drawn
    precision = choose_precision(settings.precision)
    late = settings.interaction == "late"
    card = draft_card(
        base, "reranker", max_tokens=settings.max_tokens, max_query_tokens=settings.max_query_tokens, late=late
    )
    tokens = score_tokens(base.folder, late=late)
    to_train, to_choose = hold_out(data, share=settings.holdout_share)
    for model_card in (base.card, embedder_base.card):
        require_unseen(model_card, to_train, to_choose, share=settings.holdout_share)
    texts = tokenise_sides(to_train, reranker_tokens(base.folder, training_limits(card, settings)))

    with memory_errors(settings, rows_of_sequences=1 + settings.num_negatives):
        negatives, nearness, holdout = _first_stage(embedder_base, to_train, to_choose, settings, precision, mined)
        rows, steps = schedule_of_lists(texts, negatives, settings)
        sources = {"embedder": embedder_base.identity, "mined": mined.digest if mined else None}
        run = identity(to_train, base, settings, precision, rows, **sources)
        checkpoints = Checkpoints(out, run, fresh=settings.fresh)

        model = prepare(open_reranker(base.folder, new_head=True, late=late), settings)
        new_head = not family_of(model).has_head(base.folder)
        if new_head:
            family_of(model).start_head(model, tokens, texts.skills, settings)
        reranker = Reranker(model, reranker_tokens(base.folder, card), tokens, precision)
        trainee = RerankerTrainee(model, tokens, precision, new_head=new_head)
        objective = Comparison(texts, settings, nearness if settings.similarity_weight else None)
        course = fit(
            trainee,
            objective,
            rows,
            steps,
            settings,
            checkpoints,
            measure=lambda: holdout.measure(reranker).reranked,
            title="reranker",
        )
        figures = holdout.measure(reranker)
    training = summarise(run, course, to_train, to_choose, figures.named())
    named = card.model_copy(
        update={
            "name": f"{base.upstream_name}-reranker",
            "data_digest": data.digest,
            "similarity_weight": figures.weight,
            "training": training,
        }
    )
    return publish(out, model, base, named, course, checkpoints)


def _first_stage(
    base: Base,
    to_train: TrainingData,
    to_choose: TrainingData,
    settings: TrainSettings,
    precision: Precision,
    mined: Mined | None,
) -> tuple[Sequence[Sequence[int]], Nearness | None, RerankerHoldout]:
    """Negatives of the training part, how the first stage scores it where that is needed, and its ranking of the rest.

    The embedder itself is gone afterwards: the reranker may need its memory.
    """
    if base.card is None or base.card.role != "embedder":
        raise ConfigError(
            f"embedder `{base.folder}`",
            got="no card of an embedder",
            wanted="a weights folder that skillserve wrote",
            fix="Train one: skillserve train embedder, or write a stock one: skillserve card",
        )
    embedder = Embedder(open_embedder(base.folder), base.card, embedder_tokens(base.folder, base.card), precision)
    first = FirstStage(embedder, FirstStageWeights.of(settings))
    holdout = RerankerHoldout.of(first, to_choose, settings.similarity_weight)
    if mined and not settings.similarity_weight:
        return mined.of(to_train), None, holdout
    nearness = first.nearness(to_train.queries, to_train.skills)
    return mined.of(to_train) if mined else _ranked(nearness, to_train, settings), nearness, holdout


def _ranked(nearness: Nearness, part: TrainingData, settings: TrainSettings) -> list[list[int]]:
    """Per request, the wrong skills within the settings' window."""
    first, last = window(settings.ranks)
    return [row[row >= 0].tolist() for row in nearest_wrong_skills(nearness, part, last)[:, first - 1 :]]
