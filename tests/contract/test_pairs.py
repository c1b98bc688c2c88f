"""Pairs whose sides are read apart: where they are cut, in which order they are read, what is remembered of them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from skillserve.pairs import Remembered, reading_order, sides

ids = st.lists(st.integers(0, 3), min_size=1, max_size=8)


@given(ids)
def test_a_pair_is_cut_where_its_first_token_comes_again(tokens: list[int]) -> None:
    request, skill = (side.tolist() for side in sides(np.array(tokens, np.int32)))
    assert request + skill == tokens
    assert tokens[0] not in request[1:]
    assert not skill or skill[0] == tokens[0]


@given(st.lists(ids, min_size=1, max_size=12))
def test_pairs_of_one_request_stand_together_by_length_and_others_by_length_alone(pairs: list[list[int]]) -> None:
    sequences = [np.array(pair, np.int32) for pair in pairs]
    ordered = sorted(sequences, key=reading_order("max_sim"))
    requests = [tuple(sides(pair)[0].tolist()) for pair in ordered]
    changes = sum(before != after for before, after in pairwise(requests))
    assert changes + 1 == len(set(requests))
    for request in set(requests):
        lens = [len(pair) for pair, each in zip(ordered, requests, strict=True) if each == request]
        assert lens == sorted(lens)
    for kind in ("cosine", "logit", "yes_no"):
        lens = [len(sequence) for sequence in sorted(sequences, key=reading_order(kind))]
        assert lens == sorted(lens)


@given(st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=8), st.sampled_from([0, 100, 1_000_000]))
def test_what_is_remembered_is_what_was_read_and_nothing_known_is_read_again(
    calls: list[list[int]], most_bytes: int
) -> None:
    """States of 40 bytes: 100 bytes hold three of them before all are forgotten, 0 bytes forget them at every call."""
    memory: Remembered[np.ndarray] = Remembered(most_bytes=most_bytes)
    times_read: Counter[int] = Counter()
    known: set[int] = set()
    for call in calls:
        texts = [str(text).encode() for text in call]
        if 40 * len(known) > most_bytes:
            known.clear()
        fresh = set(call) - known
        read: list[int] = []

        def states(places: list[int], call: list[int] = call, read: list[int] = read) -> list[np.ndarray]:
            read += [call[place] for place in places]
            return [np.full(10, call[place], np.int32) for place in places]

        found = memory.recall(texts, states)
        assert [each.tolist() for each in found] == [[text] * 10 for text in call]
        assert sorted(read) == sorted(fresh)
        known |= fresh
        times_read.update(read)
    if most_bytes == 1_000_000:
        assert not times_read or max(times_read.values()) == 1
