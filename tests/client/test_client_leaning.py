"""Leanings against means taken by hand, one request at a time, and what a calibration makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from skillserve.settings import CalibrateSettings
from skillserve_client.leaning import direction_between, leanings
from skillserve_client.samples import Outcome, Samples
from skillserve_client.stages import fit_stage

OUTCOMES: list[Outcome] = ["answerable", "left out", "none", "answerable", "left out", "none", "none", "answerable"]
OWNERS = [0, 0, 1, 2, 2, 3, 4, 5]
"""Which request each of them is of."""


@pytest.fixture
def embeddings() -> np.ndarray:
    chance = np.random.default_rng(3)
    of_request = chance.normal(size=(6, 4)).astype(np.float32)
    return of_request[OWNERS]


def by_hand(row: int, embeddings: np.ndarray, seen: set[int]) -> float:
    """Mean similarity to every seen request but its own, kind by kind."""
    sides = {}
    for kind in ("answerable", "none"):
        others = [s for s in seen if OUTCOMES[s] == kind and OWNERS[s] != OWNERS[row]]
        sides[kind] = np.mean([float(embeddings[row].astype(float) @ embeddings[s].astype(float)) for s in others])
    return float(sides["answerable"] - sides["none"])


@pytest.mark.parametrize("seen", [set(range(8)), {0, 1, 2, 3, 4, 5}, {0, 1, 2, 5, 6, 7}])
def test_a_leaning_knows_the_others_that_were_seen(seen: set[int], embeddings: np.ndarray) -> None:
    found = leanings(embeddings, OUTCOMES, np.array([row in seen for row in range(8)]))
    assert found == pytest.approx([by_hand(row, embeddings, seen) for row in range(8)])


def test_the_direction_gives_new_requests_their_leaning(embeddings: np.ndarray) -> None:
    line = direction_between(embeddings, OUTCOMES)
    new = np.random.default_rng(4).normal(size=4)
    kinds = np.array(OUTCOMES)
    wanted = np.mean(embeddings[kinds == "answerable"] @ new) - np.mean(embeddings[kinds == "none"] @ new)
    assert new @ line == pytest.approx(wanted)


def samples(chance: np.random.Generator, *, apart: float, dim: int = 64, each: int = 60) -> Samples:
    """Requests whose scores tell nothing; embeddings of both kinds are `apart` standard deviations from each other."""
    outcomes: tuple[Outcome, ...] = ("answerable",) * each + ("none",) * each
    embeddings = chance.normal(size=(2 * each, dim))
    embeddings[each:, 0] += apart
    features: dict[Any, np.ndarray] = {
        name: chance.normal(size=2 * each) for name in ("score", "similarity", "gap", "lead", "background")
    }
    return Samples(
        features=features,
        embeddings=embeddings,
        outcomes=outcomes,
        groups=np.arange(2 * each),
        top_fits=np.zeros(2 * each, bool),
        hit_scores=features["score"],
        hit_fits=np.arange(2 * each) % 2 == 0,
        hit_owners=np.arange(2 * each),
    )


def test_a_stage_looks_at_the_leaning_where_it_tells_what_scores_do_not() -> None:
    found = fit_stage(samples(np.random.default_rng(0), apart=6), "embed", 20, CalibrateSettings())
    assert "leaning" in found.request.features
    assert found.at_threshold.lost < 0.1


def test_requests_that_are_alike_lean_nowhere_however_many_dimensions_could_tell_them_apart() -> None:
    """In 64 dimensions 96 seen requests have a direction of their own, which the held-out ones must not know."""
    found = fit_stage(samples(np.random.default_rng(1), apart=0), "embed", 20, CalibrateSettings())
    assert all(loss > np.log(2) - 0.02 for loss in found.feature_losses.values())
    assert found.at_threshold.lost > 0.7
