"""The order of rows is drawn before a run: everything is in it, every pass, and a seed draws it again."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from skillserve.settings import TrainSettings
from skillserve_training.lists import RerankerTexts, schedule_of_lists
from skillserve_training.pairs import EmbedderTexts, schedule_of_pairs

NOTHING = np.zeros(1, np.int32)


@pytest.fixture
def texts() -> EmbedderTexts:
    """Ten requests with a skill each, twenty catalogue pairs of each kind."""
    golds = [frozenset({i}) for i in range(10)]
    described = [(10 + i, 10 + i) for i in range(20)]
    sections = [(30 + i, 30 + i) for i in range(20)]
    real = [(i, i) for i in range(10)]
    parts = [[NOTHING] * i for i in range(10)] + [[]] * 40
    return EmbedderTexts([NOTHING] * 50, golds, [NOTHING] * 50, [0] * 50, real, described, sections, parts)


def test_every_pass_holds_each_pair_once_and_its_share_of_the_catalogues_own(texts: EmbedderTexts) -> None:
    settings = TrainSettings(epochs=3, batch_size=5, catalogue_share=0.5, section_share=1.0)
    rows, steps = schedule_of_pairs(texts, [], settings)
    assert (steps, len(rows)) == (15, 75)
    passes = [rows[start : start + 25] for start in range(0, 75, 25)]
    for rows_of_pass in passes:
        requests = [row.request for row in rows_of_pass]
        assert sorted(request for request in requests if request < 10) == list(range(10))
        assert sum(10 <= request < 30 for request in requests) == 5
        assert sum(request >= 30 for request in requests) == 10
    drawn = [{row.request for row in each if row.request >= 10} for each in passes]
    assert drawn[0] != drawn[1]


def test_a_seed_draws_the_same_order_again(texts: EmbedderTexts) -> None:
    settings = TrainSettings(batch_size=5, catalogue_share=0.5, seed=1)
    first, again = (schedule_of_pairs(texts, [], settings)[0] for _ in range(2))
    other = schedule_of_pairs(texts, [], settings.model_copy(update={"seed": 2}))[0]
    assert first == again != other


@pytest.mark.parametrize("most", [1, 3, 4])
def test_parts_are_spread_over_a_request(texts: EmbedderTexts, most: int) -> None:
    """So that of ten neighbours four leave no gap of more than two between them."""
    rows, _ = schedule_of_pairs(texts, [], TrainSettings(batch_size=10, num_parts=most))
    for row in rows:
        num = len(texts.parts[row.request])
        assert len(row.parts) == min(num, most)
        if num <= most:
            assert row.parts == tuple(range(num))
        elif most > 1:
            assert (row.parts[0], row.parts[-1]) == (0, num - 1)
            gaps = [after - before for before, after in pairwise(row.parts)]
            assert max(gaps) - min(gaps) <= 1


def test_mined_negatives_go_with_their_request_only(texts: EmbedderTexts) -> None:
    wrong = [[100 + i, 200 + i] for i in range(10)]
    rows, _ = schedule_of_pairs(texts, wrong, TrainSettings(batch_size=5, num_negatives=1, catalogue_share=1.0))
    for row in rows:
        assert len(row.negatives) == (row.request < 10)
        assert set(row.negatives) <= set(wrong[row.request] if row.request < 10 else [])


@pytest.fixture
def sides() -> RerankerTexts:
    """Four requests over thirty skills; the first one has three golds."""
    golds = [frozenset({0, 1, 2}), *(frozenset({i}) for i in (3, 4, 5))]
    return RerankerTexts(tokens=None, requests=[NOTHING] * 4, skills=[NOTHING] * 30, golds=golds)  # type: ignore[arg-type]


HARD = [list(range(10, 20))] * 4


def test_negatives_are_drawn_once_and_shared_by_a_requests_golds(sides: RerankerTexts) -> None:
    settings = TrainSettings(epochs=4, batch_size=2, num_negatives=5)
    rows, steps = schedule_of_lists(sides, HARD, settings)
    assert steps == 12
    assert Counter(row.skills[0] for row in rows) == dict.fromkeys(range(6), 4)
    negatives = {row.skills[1:] for row in rows if row.request == 0}
    assert len(negatives) == 1
    assert set(negatives.pop()) <= set(HARD[0])


def test_negatives_may_be_drawn_anew_and_from_the_whole_catalogue(sides: RerankerTexts) -> None:
    settings = TrainSettings(epochs=6, batch_size=2, num_negatives=6, random_share=0.5, redraw_negatives=True)
    rows, _ = schedule_of_lists(sides, HARD, settings)
    assert len({row.skills[1:] for row in rows if row.request == 0}) > 1
    for row in rows:
        assert len(set(row.skills)) == 7
        assert sum(skill in HARD[0] for skill in row.skills[1:4]) == 3
        assert sides.golds[row.request].isdisjoint(row.skills[1:])
    assert any(not 10 <= skill < 20 for row in rows for skill in row.skills[1:])


def test_a_small_catalogue_gives_fewer_negatives(sides: RerankerTexts) -> None:
    few = RerankerTexts(sides.tokens, sides.requests, [NOTHING] * 6, sides.golds)
    settings = TrainSettings(batch_size=2, num_negatives=20, random_share=1.0)
    rows, _ = schedule_of_lists(few, [[]] * 4, settings)
    assert {len(row.skills) for row in rows} == {4, 6}
