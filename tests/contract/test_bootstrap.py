"""Intervals against an independent bootstrap, a closed form, and what 95 % has to mean."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from skillserve.bootstrap import difference, estimate, resampled_means

RESAMPLES = 4_000
NOISE = 0.006
"""Bounds of two bootstraps with these resamples and other seeds differ by less, for means that spread by 0.05."""


def bounds(values: np.ndarray, seed: int = 1) -> tuple[float, float]:
    found = estimate(values, resampled_means(values[:, None], resamples=RESAMPLES, seed=seed)[:, 0])
    assert found.mean == pytest.approx(values.mean())
    return found.low, found.high


def test_an_interval_is_that_of_another_bootstrap_and_of_the_normal_form() -> None:
    values = np.random.default_rng(3).uniform(size=60)
    other = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=5)
    assert bounds(values) == pytest.approx(tuple(other.confidence_interval), abs=NOISE)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert bounds(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=NOISE)


def test_an_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    """200 samples of 80 skewed values: 95 %, less what a percentile interval is known to lose, plus or minus chance."""
    samples = np.random.default_rng(7).beta(0.6, 0.4, size=(80, 200))
    means = resampled_means(samples, resamples=600, seed=2)
    found = [estimate(samples[:, i], means[:, i]) for i in range(200)]
    covered = np.mean([each.low <= 0.6 <= each.high for each in found])
    assert 0.89 <= covered <= 0.985


def test_a_resampled_mean_is_the_mean_of_drawn_queries() -> None:
    """Every mean of 3 values drawn from {0, 1, 10} is one of ten, and each occurs."""
    means = resampled_means(np.array([[0.0], [1.0], [10.0]]), resamples=500, seed=1)[:, 0]
    possible = {(a + b + c) / 3 for a in (0, 1, 10) for b in (0, 1, 10) for c in (0, 1, 10)}
    assert set(np.round(means, 9)) == set(np.round(list(possible), 9))


def test_columns_share_their_draws() -> None:
    values = np.random.default_rng(3).uniform(size=(50, 1))
    means = resampled_means(np.hstack([values, values, 1 - values]), resamples=200, seed=1)
    np.testing.assert_allclose(means[:, 0], means[:, 1])
    np.testing.assert_allclose(means[:, 0], 1 - means[:, 2])


def test_large_tables_are_worked_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).uniform(size=(50, 2))
    whole = resampled_means(values, resamples=90, seed=1)
    monkeypatch.setattr("skillserve.bootstrap._COUNTS_AT_ONCE", 700)
    np.testing.assert_allclose(resampled_means(values, resamples=90, seed=1), whole)


def test_the_same_seed_gives_the_same_interval_and_another_one_not() -> None:
    values = np.random.default_rng(3).uniform(size=60)
    assert bounds(values) == bounds(values) != bounds(values, seed=2)


def test_p_agrees_with_the_paired_t_test() -> None:
    differences = np.random.default_rng(4).normal(0.05, 0.25, size=120)
    means = resampled_means(differences[:, None], resamples=RESAMPLES, seed=1)[:, 0]
    found = difference(differences, means)
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.015)
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_p_of_equal_systems_is_one_and_of_a_sure_difference_nearly_none() -> None:
    for column, wanted in ((np.zeros(30), 1.0), (np.full(30, -0.2), 2 / (RESAMPLES + 1))):
        means = resampled_means(column[:, None], resamples=RESAMPLES, seed=1)[:, 0]
        assert difference(column, means).p == pytest.approx(wanted)


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(ValueError, match="no queries"):
        resampled_means(np.empty((0, 1)), resamples=10, seed=1)
