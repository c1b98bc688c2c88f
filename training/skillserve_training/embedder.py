"""Fine-tuning the embedder: from data, base and settings to a weights folder with its card and its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from skillserve.card import ModelCard
from skillserve.errors import ConfigError
from skillserve.settings import TrainSettings
from skillserve_training.base import Base
from skillserve_training.cards import draft_card
from skillserve_training.checkpoints import Checkpoints
from skillserve_training.contrast import Contrast, EmbedderTrainee, Taught
from skillserve_training.dataset import TrainingData, hold_out
from skillserve_training.distributed import join_processes
from skillserve_training.evaluate import Embedder, ndcg
from skillserve_training.forward import embed_all
from skillserve_training.holdout import known_ndcg, require_unseen
from skillserve_training.limits import prepare, training_limits
from skillserve_training.memory import memory_errors
from skillserve_training.mined import Mined
from skillserve_training.pairs import schedule_of_pairs, tokenise
from skillserve_training.precision import Precision, choose_precision
from skillserve_training.run import identity, publish, summarise
from skillserve_training.trainer import fit
from skillserve_training.weights import embedder_tokens, open_embedder

__all__ = ["train_embedder"]


def train_embedder(
    data: TrainingData,
    base: Base,
    settings: TrainSettings,
    out: Path,
    *,
    mined: Mined | None = None,
    teacher: Base | None = None,
) -> ModelCard:
    """Fine-tune, measure on the hold-out before and after, write the weights folder; returns its card.

    `mined` brings wrong skills for requests, `teacher` an embedder whose rankings of a batch are learned from.
    A run that was stopped goes on from its checkpoint. Raises ConfigError for settings that do not fit, or a run
    that diverges or does not fit into memory.
    """
    join_processes()
    if teacher and not settings.distil_weight:
        raise ConfigError(
            "teacher", got="a distil_weight of 0", wanted="a share above 0", fix="Leave --teacher out, or raise it."
        )
    precision = choose_precision(settings.precision)
    card = draft_card(base, "embedder", max_tokens=settings.max_tokens, max_query_tokens=settings.max_query_tokens)
    _refuse_dims(settings.matryoshka, card)
    to_train, to_choose = hold_out(data, share=settings.holdout_share)
    for model_card in (base.card, teacher.card if teacher else None):
        require_unseen(model_card, to_train, to_choose, share=settings.holdout_share)
    texts = tokenise(to_train, embedder_tokens(base.folder, training_limits(card, settings)), settings)
    rows, steps = schedule_of_pairs(texts, mined.of(to_train) if mined else [()] * len(to_train.queries), settings)
    sources = {"mined": mined.digest if mined else None, "teacher": teacher.identity if teacher else None}
    run = identity(to_train, base, settings, precision, rows, **sources)
    checkpoints = Checkpoints(out, run, fresh=settings.fresh)

    with memory_errors(settings, rows_of_sequences=2 + settings.num_negatives):
        model = prepare(open_embedder(base.folder), settings)
        embedder = Embedder(model, card, embedder_tokens(base.folder, card), precision)

        def measure() -> float | None:
            if not to_choose.queries:
                return None
            return ndcg(embedder.rank(to_choose.queries, to_choose.skills), to_choose)

        known = known_ndcg(base.card, card, to_choose, precision)
        before = measure() if known is None else known
        taught = _teach(teacher, to_train, settings, precision) if teacher else None
        trainee = EmbedderTrainee(model, card, precision)
        objective = Contrast(texts, settings, taught)
        course = fit(trainee, objective, rows, steps, settings, checkpoints, measure=measure, title="embedder")
        after = course.holdout.get(course.best_step)
        figures = {"before": before, "after": measure() if after is None else after}
    training = summarise(run, course, to_train, to_choose, figures)
    named = card.model_copy(
        update={"name": f"{base.upstream_name}-embedder", "data_digest": data.digest, "training": training}
    )
    return publish(out, model, base, named, course, checkpoints)


def _teach(teacher: Base, data: TrainingData, settings: TrainSettings, precision: Precision) -> Taught:
    """The teacher's embeddings of the very texts that are trained on, read with its own tokens and limits."""
    if teacher.card is None or teacher.card.role != "embedder":
        raise ConfigError(
            f"teacher `{teacher.folder}`",
            got="no card of an embedder",
            wanted="a weights folder that skillserve wrote",
            fix="Write its card: skillserve card --base FOLDER --out weights/teacher",
        )
    tokens = embedder_tokens(teacher.folder, teacher.card)
    texts, model = tokenise(data, tokens, settings), open_embedder(teacher.folder)
    return Taught(
        requests=embed_all(model, texts.requests, teacher.card, precision),
        documents=embed_all(model, texts.documents, teacher.card, precision),
    )


def _refuse_dims(dims: Sequence[int], card: ModelCard) -> None:
    faulty = [dim for dim in dims if card.dim is None or not 0 < dim < card.dim]
    if faulty:
        raise ConfigError(
            "matryoshka dimensions",
            got=", ".join(map(str, faulty)),
            wanted=f"dimensions below the model's {card.dim}",
            fix="Correct them: --matryoshka 256,128",
        )
