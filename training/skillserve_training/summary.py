"""What a card remembers of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from skillserve_training.base import Base
from skillserve_training.dataset import TrainingData
from skillserve_training.loop import LoopReport
from skillserve_training.recipe import Recipe

__all__ = ["summarise"]

_PACKAGES = ("skillserve", "torch", "transformers", "tokenizers")


def summarise(
    base: Base,
    recipe: Recipe,
    report: LoopReport,
    to_train: TrainingData,
    to_choose: TrainingData,
    holdout_ndcg: Mapping[str, float | None],
) -> dict[str, Any]:
    """Recipe, course and result of a run; `holdout_ndcg` is NDCG@10 on skills that the run has not seen."""
    return {
        "started_from": base.card.digest if base.card else base.revision,
        "recipe": recipe.to_dict(),
        **asdict(report),
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
        "versions": {package: version(package) for package in _PACKAGES},
    }
