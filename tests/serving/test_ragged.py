"""Joining, cutting, refusing and scattering, against an answer computed one sequence after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillserve.tensors import INPUT_IDS, SEQ_LENS
from skillserve_serving.ragged import Refusal, answer, check_request, join
from skillserve_serving.spec import ATTENTION_MASK, ModelSpec

TOLERANCE = 1e-5
"""Sums of at most 12 float32 numbers of size 1 in different orders differ by a few 1e-7."""

RESULTS = ("skill_embedder", "skill_reranker")


def wire(ids: list[int], lens: list[int]) -> dict[str, np.ndarray]:
    return {INPUT_IDS: np.array([ids], np.int32), SEQ_LENS: np.array([lens], np.int32)}


def ones(*lens: int) -> dict[str, np.ndarray]:
    return wire([1] * sum(lens), list(lens))


@pytest.fixture(scope="session")
def specs(toys: Any) -> dict[str, ModelSpec]:
    return {model: ModelSpec.from_config(toys.config(model)) for model in RESULTS}


@pytest.fixture(scope="session")
def graphs(toys: Any) -> dict[str, Any]:
    return {model: toys.session(toys.packed_graph(model)) for model in RESULTS}


@pytest.fixture(scope="session")
def token_spec(toys: Any) -> ModelSpec:
    """Of a model whose rows are of tokens."""
    config = toys.config()
    [scatter] = config["batch_output"]
    return ModelSpec.from_config(config | {"batch_output": [scatter | {"source_input": [INPUT_IDS]}]})


def token_rows(ids: Sequence[int], lens: Sequence[int]) -> np.ndarray:
    """Rows that know whose they are: a token's id and place, how long its sequence is, and how that begins."""
    rows, start = [], 0
    for length in lens:
        rows += [(ids[start + place], place, length, ids[start]) for place in range(length)]
        start += length
    return np.array(rows, np.float32)


@pytest.fixture(scope="session")
def padded_spec(toys: Any) -> ModelSpec:
    config = toys.config()
    config["parameters"]["skillserve_layout"] = {"string_value": "padded"}
    config["input"] = [{"name": name, "data_type": "TYPE_INT32", "dims": [-1]} for name in (INPUT_IDS, ATTENTION_MASK)]
    config["output"][0]["dims"] = [toys.dim]
    return ModelSpec.from_config(config | {"batch_input": [], "batch_output": []})


lens_strategy = st.lists(st.integers(-1, 14), min_size=0, max_size=4)
ids_strategy = st.lists(st.integers(-1, 32), min_size=0, max_size=45)
good_strategy = st.lists(st.integers(1, 6), min_size=1, max_size=4).flatmap(
    lambda lens: st.tuples(st.lists(st.integers(0, 29), min_size=sum(lens), max_size=sum(lens)), st.just(lens))
)
requests_strategy = st.lists(st.one_of(good_strategy, st.tuples(ids_strategy, lens_strategy)), min_size=1, max_size=9)


def fault_of(ids: list[int], lens: list[int], toys: Any) -> bool:
    """The contract's own words, without numpy: the reference for what is malformed."""
    return (
        not ids
        or not lens
        or len(ids) > toys.max_request_tokens
        or sum(lens) != len(ids)
        or any(not 1 <= length <= toys.max_sequence_tokens for length in lens)
        or any(not 0 <= token < toys.vocab for token in ids)
    )


@pytest.mark.parametrize("model", RESULTS)
@settings(max_examples=150, deadline=None)
@given(requests=requests_strategy)
def test_every_request_of_a_batch_is_answered_as_if_it_were_alone(
    model: str, requests: Any, toys: Any, specs: Any, graphs: Any
) -> None:
    answers = answer(specs[model], graphs[model], [wire(ids, lens) for ids, lens in requests])
    assert len(answers) == len(requests)
    for (ids, lens), rows in zip(requests, answers, strict=True):
        if fault_of(ids, lens, toys):
            assert isinstance(rows, Refusal)
            assert rows.malformed
        elif {toys.nan_id, toys.crash_id} & set(ids):
            assert isinstance(rows, Refusal)
            assert not rows.malformed
        else:
            assert not isinstance(rows, Refusal)
            np.testing.assert_allclose(rows[0], toys.naive(model, ids, lens), atol=TOLERANCE)


@settings(max_examples=200, deadline=None)
@given(request=st.one_of(good_strategy, st.tuples(ids_strategy, lens_strategy)))
def test_a_request_is_refused_exactly_when_it_is_malformed(request: Any, toys: Any, specs: Any) -> None:
    ids, lens = request
    assert (check_request(specs["skill_embedder"], wire(ids, lens)) is not None) == fault_of(ids, lens, toys)


@pytest.mark.parametrize(
    ("ids", "lens", "subject", "words"),
    [
        ([], [1], "input_ids", "no tokens"),
        ([1], [], "seq_lens", "no sequences"),
        ([1] * 41, [12, 12, 12, 5], "input_ids", "at most 40 in one request"),
        ([1, 2, 3], [1, 1], "seq_lens", "sum to 2; wanted 3"),
        ([1] * 10, [14, -4], "seq_lens", "a sequence of -4"),
        ([1] * 13, [13], "seq_lens", "a sequence of 13 tokens; wanted 1 to 12"),
        ([1, 2], [2, 0], "seq_lens", "a sequence of 0"),
        ([1, 32], [2], "input_ids", "token id 32"),
        ([-1, 1], [2], "input_ids", "token id -1"),
        ([1, 2], [2**31 - 1, 2**31 - 1], "seq_lens", "a sequence of 2147483647"),
    ],
)
def test_a_refusal_says_subject_got_and_wanted(
    ids: list[int], lens: list[int], subject: str, words: str, specs: Any, graphs: Any
) -> None:
    """And a joined batch, which is judged as a whole first, gives the same verdict beside a good request."""
    message = check_request(specs["skill_embedder"], wire(ids, lens))
    good, bad = answer(specs["skill_embedder"], graphs["skill_embedder"], [ones(1), wire(ids, lens)])
    assert not isinstance(good, Refusal)
    assert bad == Refusal(message or "")
    assert message is not None
    assert message.startswith(f"{subject}: got ")
    assert words in message
    assert "; wanted " in message


def test_two_requests_whose_errors_cancel_do_not_pass_together(specs: Any, graphs: Any) -> None:
    """Joined, their tokens and lengths agree; the request between them would silently be shifted by one token."""
    model = "skill_embedder"
    answers = answer(specs[model], graphs[model], [wire([1, 2, 3], [2]), wire([4, 5], [2]), wire([6], [2])])
    assert isinstance(answers[0], Refusal)
    assert isinstance(answers[2], Refusal)
    assert not isinstance(answers[1], Refusal)


def test_a_request_with_a_batch_dimension_comes_back_with_it(toys: Any, specs: Any, graphs: Any) -> None:
    """As the C++ collector does: flattened row-major, then scattered to the shape of its seq_lens."""
    model = "skill_embedder"
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    lens = np.array([[1, 5], [4, 2]], np.int32)
    alone, beside = answer(specs[model], graphs[model], [{INPUT_IDS: ids, SEQ_LENS: lens}, ones(3)])
    assert not isinstance(alone, Refusal)
    assert not isinstance(beside, Refusal)
    assert alone.shape == (2, 2, toys.dim)
    wanted = toys.naive(model, range(12), [1, 5, 4, 2])
    np.testing.assert_allclose(alone.reshape(4, toys.dim), wanted, atol=TOLERANCE)
    assert beside.shape == (1, 1, toys.dim)


def test_batch_inputs_are_running_counts_of_shapes_not_of_claims(specs: Any) -> None:
    feeds = join(specs["skill_embedder"], [ones(2, 3), ones(4), ones(1, 1, 1)])
    assert feeds["tok_end"].tolist() == [5, 9, 12]
    assert feeds["seq_end"].tolist() == [2, 3, 6]
    assert feeds["tok_end"].dtype == feeds["seq_end"].dtype == np.int32


def test_a_lone_request_reaches_the_graph_without_a_copy(specs: Any) -> None:
    request = ones(2, 3)
    assert np.shares_memory(join(specs["skill_embedder"], [request])[INPUT_IDS], request[INPUT_IDS])


def test_no_execution_carries_more_tokens_than_one_request_may(specs: Any, graphs: Any, toys: Any) -> None:
    """Triton counts requests when it joins them; memory is bounded by tokens."""
    seen: list[int] = []

    def watched(feeds: Any) -> Any:
        seen.append(feeds[INPUT_IDS].size)
        return graphs["skill_embedder"](feeds)

    answers = answer(specs["skill_embedder"], watched, [ones(12, 8)] * 5 + [ones(12, 12, 12, 4)])
    assert not any(isinstance(rows, Refusal) for rows in answers)
    assert seen == [40, 40, 20, 40]
    assert max(seen) <= toys.max_request_tokens


@settings(max_examples=50, deadline=None)
@given(requests=st.lists(good_strategy, min_size=1, max_size=5), at_once=st.integers(1, 12))
def test_a_batch_is_computed_in_turns_that_cut_between_sequences(
    requests: Any, at_once: int, toys: Any, specs: Any, graphs: Any
) -> None:
    model = "skill_embedder"
    turns: list[Any] = []

    def watched(feeds: Any) -> Any:
        turns.append(feeds)
        return graphs[model](feeds)

    spec = replace(specs[model], execution_tokens=at_once)
    answers = answer(spec, watched, [wire(ids, lens) for ids, lens in requests])
    for (ids, lens), rows in zip(requests, answers, strict=True):
        if not {toys.nan_id, toys.crash_id} & {token for each, _ in requests for token in each}:
            np.testing.assert_allclose(rows[0], toys.naive(model, ids, lens), atol=TOLERANCE)
    if not any(toys.crash_id in ids for ids, _ in requests):  # a crash is tried again, request by request
        assert np.concatenate([turn[SEQ_LENS] for turn in turns]).tolist() == [n for _, lens in requests for n in lens]
    for turn in turns:
        assert turn[INPUT_IDS].size <= at_once or turn[SEQ_LENS].size == 1
        assert turn["tok_end"][-1] == turn[INPUT_IDS].size
        assert turn["seq_end"][-1] == turn[SEQ_LENS].size


@settings(max_examples=100, deadline=None)
@given(requests=requests_strategy, at_once=st.integers(0, 12))
def test_rows_of_tokens_come_home_in_turns_and_beside_malformed_requests(
    requests: Any, at_once: int, toys: Any, token_spec: ModelSpec
) -> None:
    """`at_once` 0 is no turns."""
    spec = replace(token_spec, execution_tokens=at_once)
    joined = [wire(ids, lens) for ids, lens in requests]
    answers = answer(spec, lambda feeds: token_rows(feeds[INPUT_IDS], feeds[SEQ_LENS]), joined)
    assert len(answers) == len(requests)
    for (ids, lens), rows in zip(requests, answers, strict=True):
        if fault_of(ids, lens, toys):
            assert isinstance(rows, Refusal)
            assert rows.malformed
        else:
            assert not isinstance(rows, Refusal)
            np.testing.assert_array_equal(rows, token_rows(ids, lens)[None])


def test_rows_of_tokens_of_a_request_with_a_batch_dimension_come_back_with_it(token_spec: ModelSpec) -> None:
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    request = {INPUT_IDS: ids, SEQ_LENS: np.array([[1, 5], [4, 2]], np.int32)}
    [rows] = answer(token_spec, lambda feeds: token_rows(feeds[INPUT_IDS], feeds[SEQ_LENS]), [request])
    assert not isinstance(rows, Refusal)
    np.testing.assert_array_equal(rows, token_rows(range(12), [1, 5, 4, 2]).reshape(2, 6, 4))


def test_a_graph_that_gives_rows_of_sequences_where_tokens_were_promised_is_not_scattered(
    token_spec: ModelSpec, graphs: Any
) -> None:
    answers = answer(token_spec, graphs["skill_embedder"], [ones(2, 3), ones(4)])
    assert all(isinstance(rows, Refusal) and rows.cause is not None for rows in answers)


def test_a_crash_of_the_runtime_fails_only_the_request_that_caused_it(specs: Any, graphs: Any, toys: Any) -> None:
    model = "skill_embedder"
    requests = [wire([1, 2], [2]), wire([toys.crash_id], [1]), wire([3], [1])]
    first, crashed, last = answer(specs[model], graphs[model], requests)
    assert isinstance(crashed, Refusal)
    assert crashed.cause is not None
    assert "/" not in crashed.message
    np.testing.assert_allclose(first[0], toys.naive(model, [1, 2], [2]), atol=TOLERANCE)
    np.testing.assert_allclose(last[0], toys.naive(model, [3], [1]), atol=TOLERANCE)


def test_rows_that_are_not_finite_are_an_error_of_their_request_alone(specs: Any, graphs: Any, toys: Any) -> None:
    model = "skill_reranker"
    good, bad = answer(specs[model], graphs[model], [ones(2), wire([toys.nan_id], [1])])
    assert not isinstance(good, Refusal)
    assert isinstance(bad, Refusal)
    assert "not finite" in bad.message


def test_a_graph_that_gives_the_wrong_number_of_rows_is_not_scattered(specs: Any) -> None:
    def short(feeds: Any) -> Any:
        return np.zeros((feeds[SEQ_LENS].size - 1, 4), np.float32)

    answers = answer(specs["skill_embedder"], short, [ones(1, 1), ones(1)])
    assert all(isinstance(rows, Refusal) and rows.cause is not None for rows in answers)


def padded_wire(*rows: list[int]) -> dict[str, np.ndarray]:
    """Rows of equal length; token 0 stands for padding."""
    ids = np.array(rows, np.int32)
    return {INPUT_IDS: ids, ATTENTION_MASK: (ids != 0).astype(np.int32)}


def test_padded_requests_are_stacked_and_cut_along_the_batch_dimension(padded_spec: ModelSpec, toys: Any) -> None:
    graph = toys.session(toys.padded_graph("skill_embedder"))
    requests = [padded_wire([1, 2, 3], [4, 5, 0]), padded_wire([6, 0, 0])]
    first, second = answer(padded_spec, graph, requests)
    assert not isinstance(first, Refusal)
    assert not isinstance(second, Refusal)
    np.testing.assert_allclose(first, toys.naive("skill_embedder", [1, 2, 3, 4, 5], [3, 2]), atol=TOLERANCE)
    np.testing.assert_allclose(second, toys.naive("skill_embedder", [6], [1]), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (padded_wire([0, 0]), "without tokens"),
        ({INPUT_IDS: np.ones((1, 2), np.int32), ATTENTION_MASK: np.full((1, 2), 2, np.int32)}, "got 2"),
        ({INPUT_IDS: np.ones((1, 2), np.int32), ATTENTION_MASK: np.ones((1, 3), np.int32)}, "shape [1, 3]"),
        (padded_wire([1] * 13), "13 tokens a sequence"),
        (padded_wire([99, 1]), "token id 99"),
    ],
)
def test_a_malformed_padded_request_is_refused_beside_a_good_one(
    request_: Any, words: str, padded_spec: ModelSpec, toys: Any
) -> None:
    graph = toys.session(toys.padded_graph("skill_embedder"))
    bad, good = answer(padded_spec, graph, [request_, padded_wire([1, 2])])
    assert isinstance(bad, Refusal)
    assert words in bad.message
    assert not isinstance(good, Refusal)
