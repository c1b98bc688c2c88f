"""What a run is, and what its card remembers of it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from skillserve.config import TrainSettings
from skillserve_training.base import Base
from skillserve_training.dataset import TrainingData
from skillserve_training.trainer import Course

__all__ = ["identity", "summarise"]

_PACKAGES = ("skillserve", "torch", "transformers", "tokenizers")
_NOT_OF_THE_COURSE = {"fresh", "checkpoint_steps"}
"""Settings that change no weight."""


def identity(data: TrainingData, base: Base, settings: TrainSettings, **sources: str | None) -> dict[str, Any]:
    """Everything that the course of a run depends on, `sources` being digests of what else it reads."""
    return {
        "data": data.digest,
        "base": base.card.digest if base.card else base.revision,
        "settings": settings.model_dump(mode="json", exclude=_NOT_OF_THE_COURSE),
        **{name: digest for name, digest in sources.items() if digest},
        "versions": {package: version(package) for package in _PACKAGES},
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
        "first_loss": course.first_loss,
        "final_loss": course.final_loss,
        "parts": {
            "origin": to_train.origin,
            "cut": to_train.cut,
            "trained_on": to_train.part_digest,
            "chosen_on": to_choose.part_digest,
        },
        "num_queries": len(to_train.queries),
        "num_skills": len(to_train.skills),
        "num_holdout_queries": len(to_choose.queries),
        "holdout_ndcg_at_10": dict(holdout_ndcg),
    }
