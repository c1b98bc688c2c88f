"""Figures of probabilities and thresholds, by hand and against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from skillserve_client.calibration import Curve
from skillserve_client.reliability import (
    brier,
    cut_for,
    ece,
    fit_of,
    least_none,
    log_losses,
    point_at,
    points_along,
    reliability,
    wilson,
)

LOGISTIC = Curve(kind="platt", features=("score",), coefficients=(1.0,), intercept=0.0)


def test_ece_is_what_it_is_by_hand() -> None:
    """Ten samples, one a bin: each contributes a tenth of its own error."""
    p = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95])
    y = np.array([False, False, False, True, False, True, True, False, True, True])
    errors = [0.05, 0.1, 0.2, 0.7, 0.4, 0.4, 0.3, 0.8, 0.1, 0.05]
    assert ece(p, y, np.ones(10)) == pytest.approx(sum(errors) / 10)


def test_bins_have_equal_weight_not_equal_numbers() -> None:
    """Half of the weight on two samples gives each of them bins of its own, whatever the others are."""
    p = np.concatenate([np.linspace(0.01, 0.2, 80), [0.5, 0.9]])
    y = p > 0.4
    w = np.concatenate([np.full(80, 0.5 / 80), [0.25, 0.25]])
    bins = reliability(p, y, w)
    assert bins[-2:] == [(pytest.approx(0.25), 0.5, 1.0), (pytest.approx(0.25), 0.9, 1.0)]
    assert [share for share, _, _ in bins[:-2]] == pytest.approx([0.1] * 5)
    assert sum(share for share, _, _ in bins) == pytest.approx(1)


def test_perfect_probabilities_have_an_error_that_goes_to_zero() -> None:
    chance = np.random.default_rng(1)
    p = chance.uniform(size=200_000)
    assert ece(p, chance.uniform(size=len(p)) < p, np.ones(len(p))) < 0.005
    assert ece(p, chance.uniform(size=len(p)) < p**2, np.ones(len(p))) == pytest.approx(1 / 6, abs=0.01)


def test_weights_count_like_repetitions() -> None:
    p, y = np.array([0.2, 0.7, 0.9]), np.array([False, False, True])
    times = np.array([1, 3, 2])
    many = (np.repeat(p, times), np.repeat(y, times), np.ones(6))
    weighted, repeated = fit_of(p, y, times.astype(float)), fit_of(*many)
    assert weighted.log_loss == pytest.approx(repeated.log_loss)
    assert weighted.brier == pytest.approx(repeated.brier) == pytest.approx((0.04 + 3 * 0.49 + 2 * 0.01) / 6)
    assert brier(p, y, np.ones(3)) == pytest.approx((0.04 + 0.49 + 0.01) / 3)


def test_a_certainty_that_was_wrong_costs_much_but_not_everything() -> None:
    found = log_losses(np.array([1.0, 1.0, 0.25]), np.array([True, False, True]))
    assert found.tolist() == pytest.approx([0.0, -math.log(1e-12), math.log(4)])


def test_a_threshold_keeps_its_promise_on_new_requests() -> None:
    """Over many draws, the mean false injection of new requests from the same source is at most the one asked for."""
    chance = np.random.default_rng(2)
    for asked, num in ((0.05, 19), (0.05, 200), (0.2, 37)):
        injected = []
        for _ in range(2000):
            threshold = cut_for(chance.beta(1, 5, num), asked)
            injected.append((chance.beta(1, 5, 50) >= threshold).mean())
        assert np.mean(injected) <= asked + 0.005
        assert np.mean(injected) >= math.floor(asked * (num + 1)) / (num + 1) - 0.005


def test_a_threshold_stands_just_above_the_last_request_that_it_refuses() -> None:
    p = np.linspace(0.01, 0.99, 99)
    threshold = cut_for(p, 0.05)  # j = 5
    assert (p >= threshold).sum() == 4
    assert threshold == np.nextafter(p[-5], np.inf)


def test_wilsons_interval_is_what_a_textbook_says_and_never_certain() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    table = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (num, of), expected in table.items():
        assert wilson(num, of) == pytest.approx(expected, abs=5e-5)
    assert wilson(30, 30) == (pytest.approx(0.8865, abs=1e-3), 1.0)
    assert wilson(0, 0) == (0, 1)


@pytest.mark.parametrize(("asked", "least"), [(0.05, 19), (0.02, 49), (0.5, 1), (0.1, 9)])
def test_the_least_number_of_requests_is_the_first_that_works(asked: float, least: int) -> None:
    assert least_none(asked) == least
    cut_for(np.full(least, 0.5), asked)
    with pytest.raises(ValueError, match="too few"):
        cut_for(np.full(least - 1, 0.5), asked)


def test_coverage_and_risk_are_what_they_are_by_hand() -> None:
    """Four answerable requests, one of them answered wrongly and one lost; two of four others are injected."""
    z = np.log(p := np.array([0.9, 0.8, 0.7, 0.2, 0.9, 0.6, 0.1, 0.1])) - np.log(1 - p)
    y = np.array([True] * 4 + [False] * 4)
    top_fits = np.array([True, True, False, True, False, False, False, False])
    point = point_at(0.0, LOGISTIC, z, y, top_fits, none_share=0.2)
    assert (point.threshold, point.injected, point.lost) == (0.5, 0.5, 0.25)
    assert point.coverage == pytest.approx(0.2 * 0.5 + 0.8 * 0.75)
    assert point.risk == pytest.approx((0.2 * 0.5 + 0.8 * 0.25) / point.coverage)
    nothing = point_at(9.0, LOGISTIC, z, y, top_fits, none_share=0.2)
    assert (nothing.coverage, nothing.risk, nothing.lost, nothing.injected) == (0, 0, 1, 0)


def test_the_curve_runs_from_everything_answered_to_almost_nothing() -> None:
    chance = np.random.default_rng(3)
    z, y = chance.normal(size=400), chance.uniform(size=400) < 0.5
    points = points_along(LOGISTIC, z, y, y, none_share=0.5)
    assert points[0].coverage == pytest.approx(1)
    assert [point.threshold for point in points] == sorted({point.threshold for point in points})
    assert [point.coverage for point in points] == sorted((point.coverage for point in points), reverse=True)
    assert points[-1].coverage < 0.01
