"""Schedules, windows, warm-up, the search for a rate, and overload: all that needs no server."""

from __future__ import annotations

from statistics import geometric_mean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import expon, kstest, sem, t

from skillserve_bench.load.generator import clock_step, num_workers_for
from skillserve_bench.load.histogram import Histogram
from skillserve_bench.load.schedule import Arrivals, ClosedLoop, OpenLoop, Phase
from skillserve_bench.load.windows import Records, Window, by_window, merge_windows
from skillserve_bench.rate_search import Bracket, HighestRate, search_rate
from skillserve_bench.settling import num_warm_up


def draw(*phases: Phase, arrivals: Arrivals = "poisson", seed: int = 3) -> OpenLoop:
    """A schedule."""
    return OpenLoop.draw(phases, arrivals=arrivals, seed=seed)


def test_poisson_gaps_are_exponential_and_their_number_is_poissons() -> None:
    load = draw(Phase(200, 50))
    gaps = np.diff(load.offsets)
    assert kstest(gaps, expon(scale=1 / 200).cdf).pvalue > 0.01
    nums = [len(draw(Phase(50, 2), seed=seed).offsets) for seed in range(300)]
    assert np.mean(nums) == pytest.approx(100, abs=2)
    assert np.var(nums) == pytest.approx(100, rel=0.3)


def test_a_schedule_follows_its_seed_and_is_drawn_beforehand() -> None:
    one, same, other = (draw(Phase(100, 5), seed=seed).offsets for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one[:100], other[:100])


@given(st.integers(1, 5), st.sampled_from(["poisson", "constant"]), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_the_workers_shares_together_are_the_schedule(num: int, arrivals: Arrivals, seed: int) -> None:
    load = draw(Phase(30, 1), Phase(90, 0.5), Phase(10, 2), arrivals=arrivals, seed=seed)
    together = np.sort(np.concatenate([load.share(i, num).offsets for i in range(num)]))
    np.testing.assert_array_equal(together, load.offsets)
    assert (np.diff(load.offsets) >= 0).all()
    assert load.offsets.min(initial=0.0) >= 0
    assert load.offsets.max(initial=0.0) < load.seconds == 3.5


def test_constant_arrivals_keep_their_gap_in_each_phase() -> None:
    load = draw(Phase(10, 1), Phase(20, 1), arrivals="constant")
    np.testing.assert_allclose(np.diff(load.offsets)[:9], 0.1)
    np.testing.assert_allclose(np.diff(load.offsets)[10:], 0.05)
    assert str(load) == "open loop, constant arrivals, 15/s"


def test_clients_are_shared_among_workers() -> None:
    shares = [ClosedLoop(num_clients=5, seconds=None).share(i, 3).num_clients for i in range(3)]
    assert shares == [2, 2, 1]
    assert num_workers_for(3) == 3
    assert num_workers_for(0) >= 1


def records(scheduled_s: list[float], latency_s: list[float | None], lag_s: float = 0.0) -> Records:
    """Requests as a process notes them; None is no answer."""
    found = Records(len(scheduled_s))
    for i, (begin, lasted) in enumerate(zip(scheduled_s, latency_s, strict=True)):
        found.scheduled[i], found.sent[i] = round(begin * 1e9), round((begin + lag_s) * 1e9)
        if lasted is None:
            found.fail(i, "ServerOverloaded")
        else:
            found.done[i], found.outcome[i] = round((begin + lasted) * 1e9), Records.ANSWERED
    return found


def test_a_request_belongs_to_the_window_of_its_scheduled_start() -> None:
    windows = by_window(records([0.1, 0.9, 1.5], [0.2, 1.3, None], lag_s=0.01), 1.0)
    assert [window.num_scheduled for window in windows] == [2, 1, 0]
    assert [window.num_done for window in windows] == [1, 0, 1]
    assert windows[0].latencies.greatest_us == pytest.approx(1.3e6, rel=1e-3)  # from the schedule, not from sending
    assert windows[0].lags.quantile_us(0.5) == pytest.approx(1e4, rel=1e-3)
    assert windows[1].failures == {"ServerOverloaded": 1}


def test_what_was_never_answered_is_unfinished_and_what_never_started_is_nothing() -> None:
    found = Records(3)
    found.scheduled[:2], found.sent[:2] = (0, 10), (0, 10)
    (window,) = by_window(found, 1.0)
    assert (window.num_scheduled, window.failures) == (2, {"Unfinished": 2})
    assert by_window(Records(2), 1.0) == []


def test_windows_of_processes_add_up_and_survive_a_report() -> None:
    one = by_window(records([0.1, 1.1], [0.2, None]), 1.0)
    other = by_window(records([0.3], [0.1]), 1.0)
    merged = [Window.from_dict(window.to_dict()) for window in merge_windows([one, other])]
    assert [window.num_scheduled for window in merged] == [2, 1]
    assert merged[0].latencies.num == 2
    assert merged[1].failures == {"ServerOverloaded": 1}


def window(number: int, median_ms: float, num: int = 20) -> Window:
    """A window whose answers all took as long."""
    latencies = Histogram.of(np.full(num, round(median_ms * 1e6)))
    return Window(number=number, num_scheduled=num, num_done=num, latencies=latencies, lags=Histogram())


def settled(*medians: float, num: int = 20) -> int | None:
    """Warm-up of windows with these medians."""
    return num_warm_up([window(i, each, num) for i, each in enumerate(medians)])


def test_warm_up_lasts_until_three_windows_agree() -> None:
    assert settled(50, 20, 12, 10, 10.5, 10.9, 11, 11, 11) == 6
    assert settled(50, 20, 12, 10, 10.5, 10.9) is None  # nothing would be left of it
    assert settled(10, 10, 10, 10, 10) == 3
    assert settled(10, 11.5, 10, 11.5, 10, 11.5) is None
    assert settled(10, 10) is None
    assert settled(10, 10, 10, 10, 10, num=4) is None  # too few answers to have a median


def test_the_search_finds_the_limit_within_its_tolerance() -> None:
    for limit in (3.0, 47.0, 800.0):
        found = search_rate(lambda rate, limit=limit: rate <= limit, start=50.0, tolerance=0.05, most_probes=30)
        assert found.passed is not None
        assert found.failed is not None
        assert found.passed <= limit < found.failed <= found.passed * 1.05


def test_a_search_ends_after_so_many_probes_or_when_told() -> None:
    assert search_rate(lambda _: False, start=10, tolerance=0.1, most_probes=4).passed is None
    assert search_rate(lambda _: True, start=10, tolerance=0.1, most_probes=3).failed is None
    assert search_rate(lambda _: None, start=10, tolerance=0.1, most_probes=3).num_probes == 0


def test_a_search_near_the_limit_takes_smaller_steps() -> None:
    tried: list[float] = []

    def passes(rate: float) -> bool:
        tried.append(rate)
        return rate <= 50.0

    found = search_rate(passes, start=48.0, tolerance=0.1, most_probes=8, step=1.2)
    assert tried == pytest.approx([48.0, 48.0 * 1.2, 48.0 * 1.2**0.5])
    assert (found.passed, found.failed) == pytest.approx((48.0, 48.0 * 1.2**0.5))


def test_a_highest_rate_lies_between_what_was_kept_and_refused_and_where_searches_ended() -> None:
    """The interval of several searches is the one of their logarithms' mean."""
    assert HighestRate(40.0, 44.0).estimate.ends == (40.0, 44.0)
    assert HighestRate(40.0, 44.0, (30.0, 60.0)).estimate.ends == (30.0, 60.0)  # two are too few for Student
    assert HighestRate(40.0, None, (40.0,) * 3).estimate.ends == (40.0, None)
    searched = (30.0, 45.0, 38.0, 47.0)
    logs = np.log(searched)
    low, high = np.exp(t.interval(0.95, 3, loc=logs.mean(), scale=sem(logs)))
    found = HighestRate(40.0, 44.0, searched)
    assert found.estimate.ends == pytest.approx((low, high))
    assert found.text == f"40.0 [{low:.1f}, {high:.1f}]"
    assert HighestRate(0.0421, 0.05).text == "0.0421 [0.0421, 0.0500]"
    ratio = found.relative_to(HighestRate(20.0, 25.0, (20.0,)))
    assert ratio.ends == pytest.approx((low / 25, high / 20))


def test_searches_together_leave_open_what_each_did_and_one_without_a_rate_counts_at_most_as_it_failed() -> None:
    both = HighestRate.of([Bracket(40.0, 44.0, 5), Bracket(None, 5.4, 8), Bracket(44.0, 50.0, 3)])
    assert both is not None
    assert (both.kept, both.refused) == pytest.approx(((40 * 44) ** 0.5, (44 * 50) ** 0.5))
    assert both.searched == (40.0, 5.4, 44.0)
    assert both.lower(1.1) == HighestRate(both.kept / 1.1, both.kept, both.searched)
    unlimited = HighestRate.of([Bracket(40.0, 44.0, 5), Bracket(80.0, None, 2)])
    assert unlimited is not None
    assert unlimited.refused is None
    assert HighestRate.of([Bracket(None, 5.4, 8)]) is None


def test_ratios_of_highest_rates_hold_as_often_as_they_say() -> None:
    """Two runs of one thing, of four searches each, which differ by a fifth."""
    rng, trials = np.random.default_rng(7), 400
    covered = 0
    for _ in range(trials):
        searches = [tuple(rng.lognormal(3, 0.2, 4)) for _ in range(2)]
        one, other = (HighestRate(geometric_mean(each), geometric_mean(each), each) for each in searches)
        covered += one.relative_to(other).excludes(1.0) is False
    assert 0.93 <= covered / trials <= 0.98


def test_the_rate_of_a_simulated_queue_is_the_one_of_theory() -> None:
    """M/M/1: sojourn times are exponential with rate mu - lambda, so p99 = ln(100) / (mu - lambda)."""
    per_s, bound_s = 100.0, 0.2
    wanted = per_s - np.log(100) / bound_s

    def passes(rate: float) -> bool:
        arrivals = draw(Phase(rate, 600), seed=11).offsets
        served = np.random.default_rng(5).exponential(1 / per_s, len(arrivals))
        free, late = 0.0, 0
        for begin, service in zip(arrivals.tolist(), served.tolist(), strict=True):
            free = max(free, begin) + service
            late += free - begin > bound_s
        return late <= 0.01 * len(arrivals)

    found = search_rate(passes, start=50.0, tolerance=0.02, most_probes=9)
    assert found.passed == pytest.approx(wanted, rel=0.1)


def test_a_step_of_the_wall_clock_is_what_the_monotonic_one_does_not_share() -> None:
    assert clock_step((1_000.0, 5.0), (1_010.0, 15.0)) == pytest.approx(0)
    assert clock_step((1_000.0, 5.0), (4_610.0, 15.0)) == pytest.approx(3_600)
