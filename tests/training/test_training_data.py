"""Cutting training data: what is chosen on has not been trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillserve.errors import CatalogueError, ConfigError
from skillserve.records import Query, Skill
from skillserve_training import TrainingData, folds, hold_out, read_training_data


def _data(golds: list[set[int]]) -> TrainingData:
    return TrainingData(
        skills=tuple(Skill(id=f"s{i}", name=f"s{i}") for i in range(12)),
        queries=tuple(Query(id=f"q{i}", text="a") for i in range(len(golds))),
        golds={f"q{i}": frozenset(f"s{gold}" for gold in fitting) for i, fitting in enumerate(golds)},
        digest="0" * 64,
    )


_GOLDS = st.lists(st.sets(st.integers(0, 11), min_size=1, max_size=4), min_size=1, max_size=30)


def _assert_apart(data: TrainingData, to_train: TrainingData, to_choose: TrainingData) -> None:
    """No gold of a request that is chosen on is trained on, in any role."""
    trained = {skill.id for skill in to_train.skills}.union(*to_train.golds.values())
    assert set(to_train.golds) == {query.id for query in to_train.queries}
    assert set(to_choose.golds) == {query.id for query in to_choose.queries}
    for query in to_train.queries:
        assert data.golds[query.id] <= trained
    for query in to_choose.queries:
        assert data.golds[query.id].isdisjoint(trained)
    assert to_choose.skills == data.skills


@given(_GOLDS, st.floats(0.05, 0.9))
def test_the_hold_out_never_shares_a_gold_with_training(golds: list[set[int]], share: float) -> None:
    data = _data(golds)
    try:
        to_train, to_choose = hold_out(data, share=share)
    except CatalogueError:
        return  # everything hangs together, so nothing was left to train on
    _assert_apart(data, to_train, to_choose)


@given(_GOLDS, st.integers(2, 5))
def test_folds_hold_out_every_skill_that_fits_once_and_no_request_twice(golds: list[set[int]], num: int) -> None:
    data = _data(golds)
    try:
        cuts = folds(data, num)
    except CatalogueError:
        return  # too little data for so many folds
    held = [{skill.id for skill in data.skills} - {skill.id for skill in to_train.skills} for to_train, _ in cuts]
    chosen = [query.id for _, to_choose in cuts for query in to_choose.queries]
    assert sum(map(len, held)) == len(set().union(*held))
    assert set().union(*held) == set().union(*data.golds.values())
    assert len(chosen) == len(set(chosen))
    for to_train, to_choose in cuts:
        _assert_apart(data, to_train, to_choose)
    # Only requests whose golds lie in several folds are in none.
    for query in data.queries:
        assert (query.id in chosen) == any(data.golds[query.id] <= each for each in held)


def test_the_folds_of_the_sample_are_all_of_it_and_alike(sample_data: Path) -> None:
    data = read_training_data(sample_data)
    cuts = folds(data, 4)
    sizes = [len(to_choose.queries) for _, to_choose in cuts]
    assert sum(sizes) >= len(data.queries) - 3 * 3  # one chain may be torn between two folds
    assert max(sizes) < 1.5 * min(sizes)
    assert len({to_train.part_digest for to_train, _ in cuts}) == 4


def test_the_first_fold_is_the_hold_out_of_its_share(sample_data: Path) -> None:
    data = read_training_data(sample_data)
    fold, part = folds(data, 10)[0][0], hold_out(data, share=0.1)[0]
    assert fold.part_digest == part.part_digest
    assert (part.cut, fold.cut) == ("hold-out of 0.1", "fold 1 of 10")


def test_folds_of_what_a_hold_out_left_never_see_the_hold_out(sample_data: Path) -> None:
    to_train, held_out = hold_out(read_training_data(sample_data), share=0.2)
    for trained, chosen in folds(to_train, 3):
        assert {query.id for query in held_out.queries}.isdisjoint(query.id for query in trained.queries)
        assert {query.id for query in held_out.queries}.isdisjoint(query.id for query in chosen.queries)
        assert trained.cut.startswith("hold-out of 0.2, fold ")


def test_more_folds_than_the_data_have_are_refused() -> None:
    with pytest.raises(CatalogueError, match="fewer than 3 folds"):
        folds(_data([{0, 1}, {1, 2}, {3, 4}]), 3)
    with pytest.raises(ConfigError, match="2 or more"):
        folds(_data([{0}, {1}]), 1)


def test_a_smaller_hold_out_is_a_part_of_a_larger_one(sample_data: Path) -> None:
    """A reranker is chosen on skills that its embedder has not seen, also when the shares differ."""
    data = read_training_data(sample_data)
    small, large = (hold_out(data, share=share)[0] for share in (0.1, 0.3))
    assert {skill.id for skill in large.skills} < {skill.id for skill in small.skills}


def test_requests_that_share_golds_are_held_out_together(sample_data: Path) -> None:
    data = read_training_data(sample_data)
    to_train, to_choose = hold_out(data, share=0.2)
    # Only the last chain, at the edge of the share, may be cut.
    assert len(data.queries) - len(to_train.queries) - len(to_choose.queries) <= 3
    assert 0.15 < len(to_choose.queries) / len(data.queries) < 0.25


def test_without_a_share_everything_is_trained_on(sample_data: Path) -> None:
    data = read_training_data(sample_data)
    to_train, to_choose = hold_out(data, share=0)
    assert to_train == data
    assert not to_choose.queries


def test_a_hold_out_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(CatalogueError, match="--holdout-share 0"):
        hold_out(_data([{0, 1}]), share=0.5)
