"""The guard and the layout against a naive reference, in plain torch, before any export."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skillserve_export.layout import Limits, packed_layout, rows_home

VOCAB_SIZE, MAX_TOKENS, MAX_REQUEST_TOKENS = 100, 8, 24

# A request is (ids, lengths); sound ones have lengths that sum to the ids.
_sound = st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=4).flatmap(
    lambda lens: st.tuples(
        st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=sum(lens), max_size=sum(lens)), st.just(lens)
    )
)
_any = st.tuples(
    st.lists(st.integers(-3, VOCAB_SIZE + 3), max_size=12),
    st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 12), max_size=4),
)


def _is_sound(ids: list[int], lens: list[int]) -> bool:
    return (
        bool(ids)
        and bool(lens)
        and sum(lens) == len(ids) <= MAX_REQUEST_TOKENS
        and all(1 <= n <= MAX_TOKENS for n in lens)
        and all(0 <= i < VOCAB_SIZE for i in ids)
    )


def _join(requests: list[tuple[list[int], list[int]]]) -> list[torch.Tensor]:
    ids = np.concatenate([np.asarray(ids, np.int32) for ids, _ in requests])
    lens = np.concatenate([np.asarray(lens, np.int64) for _, lens in requests]).astype(np.int32)
    ends = [np.cumsum([len(part[side]) for part in requests]).astype(np.int32) for side in (0, 1)]
    return [torch.from_numpy(x) for x in (ids, lens, *ends)]


@settings(max_examples=300, deadline=None)
@given(st.lists(_sound | _any, min_size=1, max_size=6))
def test_the_guard_keeps_exactly_the_sound_requests(requests: list[tuple[list[int], list[int]]]) -> None:
    """A request is kept if it is sound by itself and nothing empty stands before it."""
    layout = packed_layout(*_join(requests), Limits(VOCAB_SIZE, MAX_TOKENS, MAX_REQUEST_TOKENS))
    ids, lens, sound = [], [], []
    empty_before = False
    for request_ids, request_lens in requests:
        empty_before |= not request_ids or not request_lens
        kept = _is_sound(request_ids, request_lens) and not empty_before
        sound += [kept] * len(request_lens)
        ids += request_ids if kept else []
        lens += request_lens if kept else []
    assert layout.sound.tolist() == sound
    if not lens:  # one filler token
        ids, lens = [0], [1]
    assert layout.input_ids.tolist() == ids
    assert layout.lens.tolist() == lens
    assert layout.position.tolist() == [place for n in lens for place in range(n)]
    assert layout.sequence.tolist() == [s for s, n in enumerate(lens) for _ in range(n)]
    assert layout.bounds.tolist() == [0, *np.cumsum(lens).tolist()]


def test_rows_come_home_and_the_others_are_nan() -> None:
    """Rows of kept sequences keep their order; rows of dropped ones are NaN, never a neighbour's."""
    home = rows_home(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([False, True, False, True, False]))
    assert torch.equal(home[[1, 3]], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert home[[0, 2, 4]].isnan().all()
