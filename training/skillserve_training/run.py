"""What a run is, what its card remembers of it, and how its weights are published."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from skillserve.card import ModelCard
from skillserve.settings import TrainSettings
from skillserve_training.base import Base
from skillserve_training.checkpoints import Checkpoints
from skillserve_training.course import Course
from skillserve_training.dataset import TrainingData
from skillserve_training.distributed import is_main
from skillserve_training.precision import Precision
from skillserve_training.report import write_report
from skillserve_training.weights import write_trained

__all__ = ["identity", "publish", "scope", "summarise", "versions"]

_PACKAGES = ("skillserve", "torch", "transformers", "tokenizers")
_NOT_OF_THE_COURSE = {"fresh", "checkpoint_steps", "chunk_size", "gradient_checkpointing"}
"""Settings that change no weight."""


def identity(
    part: TrainingData,
    base: Base,
    settings: TrainSettings,
    precision: Precision,
    rows: Sequence[object],
    **sources: str | None,
) -> dict[str, Any]:
    """Everything that the course of a run depends on: `rows` in their order, `sources` are digests of what it reads.

    Rows are part of it, since negatives come from similarities, which another processor may round differently.
    """
    return {
        "data": part.digest,
        "part": part.part_digest,
        "base": base.identity,
        "settings": settings.model_dump(mode="json", exclude=_NOT_OF_THE_COURSE),
        "precision": precision,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "rows": hashlib.sha256(repr(rows).encode()).hexdigest(),
        **{name: digest for name, digest in sources.items() if digest},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of the packages that weights depend on."""
    return {package: version(package) for package in _PACKAGES}


def scope(to_train: TrainingData, to_choose: TrainingData) -> dict[str, Any]:
    """What a model has seen of the data and what was kept from it, as the card remembers."""
    return {
        "parts": {
            "origin": to_train.origin,
            "cut": to_train.cut,
            "trained_on": to_train.part_digest,
            "chosen_on": to_choose.part_digest,
        },
        "num_queries": len(to_train.queries),
        "num_skills": len(to_train.skills),
        "num_holdout_queries": len(to_choose.queries),
    }


def summarise(
    run: Mapping[str, Any],
    course: Course,
    to_train: TrainingData,
    to_choose: TrainingData,
    holdout_ndcg: Mapping[str, float | None],
) -> dict[str, Any]:
    """Identity, course and result of a run; `holdout_ndcg` is NDCG@10 on skills that it has not seen."""
    return {
        **run,
        "steps": course.steps,
        "best_step": course.best_step,
        "seconds": course.seconds,
        "tokens_per_s": course.tokens_per_s,
        "peak_gpu_bytes": course.peak_gpu_bytes,
        "first_loss": course.first_loss,
        "final_loss": course.final_loss,
        **scope(to_train, to_choose),
        "holdout_ndcg_at_10": dict(holdout_ndcg),
    }


def publish(
    out: Path, model: PreTrainedModel, base: Base, card: ModelCard, course: Course, checkpoints: Checkpoints
) -> ModelCard:
    """Write weights, card and report, and forget the checkpoints; in a process that does not write, only the card."""
    if not is_main():
        return card
    title = f"{card.name}: {card.training['num_queries']} requests, {card.training['num_skills']} skills"
    report = partial(write_report, title=title, course=course, training=card.training)
    written = write_trained(out, model, base, card, report=report)
    checkpoints.remove()
    return written
