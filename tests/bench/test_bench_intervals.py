"""Quantiles and their intervals, against scipy, numpy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import binom, norm

from skillserve_bench.intervals import (
    Estimate,
    mean_estimate,
    order_statistics,
    quantile_estimate,
    quantile_ratio,
    rate_ratio,
)
from skillserve_bench.load.histogram import HIGHEST_US, Histogram, at_share

GRAIN = 2e-3
"""HdrHistogram keeps three digits: 0.1 % of a value, and half a microsecond is rounded."""


def windows_of(latencies_ms: np.ndarray, num: int) -> list[Histogram]:
    """Latencies in their order, cut into equal windows."""
    return [Histogram.of((part * 1e6).astype(np.int64)) for part in np.array_split(latencies_ms, num)]


@given(st.lists(st.integers(0, 10_000_000_000), min_size=1, max_size=60), st.integers(0, 60))
@settings(deadline=None, max_examples=20)
def test_processes_counting_apart_count_what_one_would_have_counted(durations_ns: list[int], cut: int) -> None:
    whole = Histogram.of(np.array(durations_ns, np.int64))
    parts = [Histogram.of(np.array(part, np.int64)) for part in (durations_ns[:cut], durations_ns[cut:])]
    merged = Histogram.merged([Histogram.decode(part.encode()) for part in parts])
    assert merged.num == whole.num == len(durations_ns)
    for one, other in zip(merged.counts(), whole.counts(), strict=True):
        np.testing.assert_array_equal(one, other)


@given(st.lists(st.integers(1, 3_000), min_size=1, max_size=40), st.sampled_from([0.01, 0.5, 0.9, 0.99, 0.999]))
@settings(deadline=None, max_examples=40)
def test_a_quantile_is_numpys_inverted_distribution(values: list[int], share: float) -> None:
    distinct, counts = np.unique(values, return_counts=True)
    found = at_share(distinct.astype(np.float64), counts[None, :], share)[0]
    assert found == np.quantile(values, share, method="inverted_cdf")


def test_a_histogram_keeps_three_digits_and_caps_at_an_hour() -> None:
    drawn = np.random.default_rng(1).lognormal(16, 2, 5_000).astype(np.int64)
    found = Histogram.of(drawn)
    for share in (0.5, 0.9, 0.99):
        assert found.quantile_us(share) == pytest.approx(
            np.quantile(drawn, share, method="inverted_cdf") / 1e3, rel=GRAIN
        )
    assert Histogram.of(np.array([10**18])).greatest_us == pytest.approx(HIGHEST_US, rel=GRAIN)
    assert np.isnan(Histogram().quantile_us(0.5))
    with pytest.raises(ValueError, match="HdrHistogram"):
        Histogram.decode("no such thing")


@pytest.mark.parametrize(("num", "share"), [(100, 0.5), (1_000, 0.9), (1_000, 0.99), (3_688, 0.999), (50_000, 0.99)])
def test_ranks_of_order_statistics_are_the_binomials(num: int, share: float) -> None:
    low, high = order_statistics(num, share)
    assert low is not None
    assert high is not None
    ranks = binom(num, share)
    assert ranks.cdf(low - 1) <= 0.025 < ranks.cdf(low)  # low is the greatest such rank
    assert ranks.sf(high - 1) <= 0.025 < ranks.sf(high - 2)  # high the least


def test_too_few_answers_bound_no_tail() -> None:
    """At 95 % the bound above p99.9 needs ln(0.025) / ln(0.999) answers."""
    assert order_statistics(3_687, 0.999)[1] is None
    assert order_statistics(3_688, 0.999)[1] == 3_688
    few = quantile_estimate([windows_of(np.arange(1.0, 101.0), 10)], 0.99, seed=1)
    assert (few.low is not None, few.high) == (True, None)
    assert few.text(0) == f"99 [{few.low:.0f}, ?]"
    assert (few.excludes(1.0), few.excludes(200.0)) == (True, None)


def coverage(draw: object, truth: float, share: float, num_windows: int) -> float:
    """How often the interval holds the truth."""
    rng, hits, rounds = np.random.default_rng(7), 0, 40
    for _ in range(rounds):
        found = quantile_estimate([windows_of(draw(rng), num_windows)], share, seed=3)  # type: ignore[operator]
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth * (1 + GRAIN) and found.high >= truth * (1 - GRAIN)
    return hits / rounds


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_intervals_of_independent_latencies_hold_the_truth_as_often_as_they_say(share: float) -> None:
    truth = float(np.exp(norm.ppf(share) * 0.5 + 2))
    assert coverage(lambda rng: rng.lognormal(2, 0.5, 600), truth, share, 12) >= 0.9


def test_latencies_that_hang_together_get_wider_intervals() -> None:
    """Each window has a level of its own, as a busy machine's phases do; order statistics alone are far too sure."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        levels = np.repeat(rng.normal(0, 0.3, 30), 20)
        return np.exp(2 + levels + rng.normal(0, 0.1, 600))

    assert coverage(draw, float(np.exp(2)), 0.5, 30) >= 0.85
    drawn = np.sort(draw(np.random.default_rng(1)))
    low, high = order_statistics(600, 0.5)
    assert low is not None
    assert high is not None
    hull = quantile_estimate([windows_of(draw(np.random.default_rng(1)), 30)], 0.5, seed=1)
    assert hull.low is not None
    assert hull.high is not None
    assert hull.high - hull.low > 2 * (drawn[high - 1] - drawn[low - 1])


def test_a_ratio_of_twice_the_latency_is_two_and_of_the_same_is_one() -> None:
    rng = np.random.default_rng(5)
    old, same = (windows_of(rng.lognormal(2, 0.3, 2_000), 20) for _ in range(2))
    slow = windows_of(2 * rng.lognormal(2, 0.3, 2_000), 20)
    twice = quantile_ratio([slow], [old], 0.5, seed=1)
    assert twice.value == pytest.approx(2, rel=0.05)
    assert twice.excludes(1.0) is True
    assert twice.excludes(2.0) is False
    assert quantile_ratio([same], [old], 0.5, seed=1).excludes(1.0) is False
    assert quantile_ratio([same[:5]], [old], 0.5, seed=1).low is None


def test_means_over_windows_have_the_interval_of_the_central_limit_theorem() -> None:
    values = np.random.default_rng(2).normal(100, 10, 60)
    found = mean_estimate([values.tolist()], seed=1)
    assert found.value == pytest.approx(values.mean())
    assert found.low is not None
    assert found.high is not None
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(60), rel=0.15)
    assert mean_estimate([[1.0, 2.0]], seed=1) == Estimate(1.5)
    assert rate_ratio([(values / 2).tolist()], [values.tolist()], seed=1).excludes(0.6) is True


def test_rounds_have_the_interval_of_student_and_of_welch() -> None:
    """Of their logarithms; each round has two windows, too few of them for a bootstrap."""
    rng = np.random.default_rng(4)
    one, other = ([[level, level] for level in rng.lognormal(3, 0.2, num)] for num in (4, 3))
    logs = [np.log([level for level, _ in rounds]) for rounds in (one, other)]
    found = mean_estimate(one, seed=1)
    wanted = stats.t.interval(0.95, 3, loc=logs[0].mean(), scale=stats.sem(logs[0]))
    assert found.ends == pytest.approx(tuple(np.exp(wanted)))
    ratio = rate_ratio(one, other, seed=1, confidence=0.99)
    ends = stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.99)
    assert ratio.ends == pytest.approx((np.exp(ends.low), np.exp(ends.high)))
    assert rate_ratio(one, other[:2], seed=1).ends == (None, None)


def test_runs_on_a_machine_of_two_speeds_agree_within_their_intervals() -> None:
    """A speed lasts longer than a round: what windows alone say is far too sure."""
    rng, trials = np.random.default_rng(9), 40
    agree = dict.fromkeys(("rounds", "windows"), 0)
    for _ in range(trials):
        runs = [
            [windows_of(rng.lognormal(2, 0.1, 120) * rng.choice([1.0, 1.7]), 6) for _ in range(6)] for _ in range(2)
        ]
        agree["rounds"] += quantile_ratio(*runs, 0.5, seed=1).excludes(1.0) is False
        flat = [[[window for windows in rounds for window in windows]] for rounds in runs]
        agree["windows"] += quantile_ratio(*flat, 0.5, seed=1).excludes(1.0) is False
    assert agree["rounds"] >= 0.9 * trials
    assert agree["windows"] < 0.8 * trials


def test_nothing_has_no_quantile() -> None:
    assert np.isnan(quantile_estimate([[Histogram()]], 0.5, seed=1).value)
    assert np.isnan(quantile_estimate([], 0.5, seed=1).value)
    assert np.isnan(mean_estimate([], seed=1).value)
