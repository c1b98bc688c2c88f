"""Medians, spreads and the alternation that they are taken from."""

from __future__ import annotations

import pytest

from skillserve_bench.alternation import alternate
from skillserve_bench.figures import Spread, paired_differences, paired_ratios, quantile, times


def test_a_spread_is_the_median_with_the_extremes() -> None:
    spread = Spread.of([3.0, 1.0, 10.0])
    assert (spread.median, spread.least, spread.greatest, spread.num) == (3.0, 1.0, 10.0, 3)
    assert spread.text(1) == "3.0 (1.0 to 10.0)"


def test_the_quartiles_ignore_one_accident_among_many() -> None:
    spread = Spread.within_quartiles([1.0, 2.0, 3.0, 4.0, 1000.0])
    assert (spread.median, spread.least, spread.greatest) == (3.0, 2.0, 4.0)


def test_a_quantile_between_two_values_is_interpolated() -> None:
    assert quantile([0.0, 10.0], 0.9) == pytest.approx(9.0)


def test_there_is_no_spread_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        Spread.of([])


def test_a_round_that_was_slow_for_both_leaves_the_ratio_alone() -> None:
    """This is why ratios are formed within rounds: the ratio of the medians here would be 0.75."""
    base, other = [100.0, 50.0, 120.0, 100.0, 20.0], [50.0, 25.0, 60.0, 75.0, 10.0]
    assert Spread.of(paired_ratios(other, base)).median == 0.5
    assert paired_differences([3.0, 5.0], [1.0, 2.0]) == [2.0, 3.0]


def test_measurements_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_ratios([1.0, 2.0], [1.0])


def test_contenders_are_measured_in_turns_and_the_warm_up_is_thrown_away() -> None:
    calls: list[tuple[str, int]] = []
    steps: list[None] = []

    def contender(name: str, number: int) -> int:
        calls.append((name, number))
        return number * (10 if name == "b" else 1)

    measured = alternate(
        {"a": lambda number: contender("a", number), "b": lambda number: contender("b", number)},
        rounds=3,
        advance=lambda: steps.append(None),
    )
    assert calls == [("a", -1), ("b", -1), ("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert measured == {"a": [0, 1, 2], "b": [0, 10, 20]}
    assert len(steps) == 8


def test_counts_agree_with_their_noun() -> None:
    assert times(1, "round") == "1 round"
    assert times(7, "round") == "7 rounds"
