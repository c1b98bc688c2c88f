"""What the embedder says of the data that a reranker is trained on: which wrong skills it ranks high, and how near.

Legend: Q requests, S skills, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from skillserve.settings import TrainSettings, window
from skillserve_training.dataset import TrainingData
from skillserve_training.evaluate import Embedder
from skillserve_training.lists import Listing

__all__ = ["FirstStage"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FirstStage:
    """Unit rows of all requests `[Q, D]` and skills `[S, D]`, in the order of the data."""

    requests: Floats
    skills: Floats

    @classmethod
    def of(cls, embedder: Embedder, data: TrainingData) -> Self:
        """Embed requests and skills of the data."""
        requests, skills = embedder.embed(data.queries, data.skills)
        return cls(requests.numpy(), skills.numpy())

    def similarities(self, row: Listing) -> Floats:
        """Of a list's request with each of its skills, `[n]`."""
        found: Floats = self.skills[list(row.skills)] @ self.requests[row.request]
        return found

    def negatives(self, golds: Sequence[frozenset[int]], settings: TrainSettings) -> list[list[int]]:
        """Per request, the wrong skills within the settings' ranks, hardest first."""
        found = []
        first, last = window(settings.ranks)
        for request, fitting in zip(self.requests, golds, strict=True):
            order = np.argsort(-(self.skills @ request), kind="stable")[:last]
            found.append([skill for skill in order[first - 1 :].tolist() if skill not in fitting])
        return found
