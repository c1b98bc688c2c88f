"""Length buckets: the dynamic programme against trying everything, and what follows from it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillserve_export.buckets import Buckets, best_buckets, enough

COUNTS = st.dictionaries(st.integers(1, 30), st.integers(1, 9), min_size=1, max_size=9)


def padded_tokens(counts: Mapping[int, int], ends: tuple[int, ...]) -> int:
    """Every sequence filled up to the first end that holds it."""
    return sum(count * ends[bisect_left(ends, length)] for length, count in counts.items())


def fewest(counts: Mapping[int, int], longest: int, multiple: int, num: int) -> int:
    """All choices of `num` ends, tried one after the other; ends need not be lengths that occur."""
    allowed = [end for end in range(1, longest) if end % multiple == 0]
    return min(padded_tokens(counts, (*ends, longest)) for ends in combinations(allowed, num - 1))


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(0, 4), st.sampled_from([1, 2, 8]))
def test_no_other_ends_pad_less(counts: dict[int, int], beyond: int, multiple: int) -> None:
    longest = max(counts) + beyond
    found = best_buckets(counts, longest=longest, multiple=multiple, most=4)
    for num, buckets in enumerate(found, 1):
        assert len(buckets.ends) == num
        assert buckets.ends[-1] == longest
        assert all(end % multiple == 0 for end in buckets.ends[:-1])
        assert buckets.padded_tokens == padded_tokens(counts, buckets.ends)
        assert buckets.padded_tokens == fewest(counts, longest, multiple, num)
        assert buckets.tokens == sum(length * count for length, count in counts.items())


@given(COUNTS, st.integers(1, 6))
def test_each_further_bucket_saves_less_than_the_one_before(counts: dict[int, int], most: int) -> None:
    """Why the first one that saves too little is a sound place to stop."""
    costs = [buckets.padded_tokens for buckets in best_buckets(counts, longest=30, most=most)]
    gains = [one - other for one, other in pairwise(costs)]
    assert all(gain >= 0 for gain in gains)
    assert gains == sorted(gains, reverse=True)


def test_as_many_buckets_as_lengths_pad_nothing() -> None:
    found = best_buckets({5: 3, 9: 1, 12: 2}, longest=12, most=8)
    assert [buckets.ends for buckets in found] == [(12,), (5, 12), (5, 9, 12)]
    assert found[-1].waste == 0
    assert found[0].waste == pytest.approx(1 - 48 / 72)


def test_what_is_served_and_was_not_seen_has_a_bucket_of_its_own_or_none_to_pay_for_it() -> None:
    """The longest sequence that the card allows is always the last end, even if the data has nothing near it."""
    found = best_buckets({10: 99}, longest=512, most=3)
    assert [buckets.ends for buckets in found] == [(512,), (10, 512)]
    assert found[1].waste == 0


def test_thousands_of_lengths_do_not_multiply_the_work() -> None:
    """Twice the lengths are about twice the steps: counted, so that no clock is asked."""

    def steps(num: int) -> int:
        counted = _Counted(1)
        best_buckets(dict.fromkeys(range(1, num + 1), counted), longest=num, most=8)
        return _Counted.products

    _Counted.products = 0
    once = steps(2_000)
    _Counted.products = 0
    assert steps(4_000) < 2.5 * once
    assert once < 100 * 8 * 2_000


class _Counted(int):
    """A number whose products are counted; sums stay of its kind."""

    products = 0

    def __mul__(self, other: int) -> _Counted:
        _Counted.products += 1
        return _Counted(int(self) * int(other))

    __rmul__ = __mul__

    def __add__(self, other: int) -> _Counted:
        return _Counted(int(self) + int(other))

    __radd__ = __add__

    def __sub__(self, other: int) -> _Counted:
        return _Counted(int(self) - int(other))


@pytest.mark.parametrize("counts", [{}, {5: 0}, {0: 1}, {13: 1}])
def test_lengths_that_cannot_be_served_are_refused(counts: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="not all from 1 to 12"):
        best_buckets(counts, longest=12, most=2)


def test_one_more_has_to_save_a_share_of_what_is_computed() -> None:
    found = [Buckets((9,), 50, 100), Buckets((4, 9), 50, 90), Buckets((4, 6, 9), 50, 89)]
    assert enough(found, 0.05) is found[1]
    assert enough(found, 0.5) is found[0]
    assert enough(found, 0.001) is found[2]
