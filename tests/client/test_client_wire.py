"""Requests and answers without a socket."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillserve.errors import RepositoryError, RequestRejected
from skillserve.max_sim import Interaction
from skillserve_client.wire import ServedModel, collect, cut, encode

SEQUENCES = [np.array(ids, np.int32) for ids in ([5, 6, 7], [8], [9, 10])]


def model(layout: str = "packed", **changes: object) -> ServedModel:
    """A served embedder."""
    facts: dict[str, object] = {
        "role": "embedder",
        "name": "skill_embedder",
        "version": "1",
        "layout": layout,
        "digest": "e" * 64,
        "dim": 2,
        "max_request_tokens": 40,
        "max_sequence_tokens": 40,
        "vocab_size": 100,
        "max_batch_size": 4,
    }
    return ServedModel(**{**facts, **changes})  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 100), st.sampled_from(["packed", "padded"]))
def test_requests_keep_the_order_and_both_budgets(lens: list[int], budget: int, layout: str) -> None:
    slices = cut([np.full(n, 7, np.int32) for n in lens], model(layout), budget)
    assert [n for s in slices for n in lens[s]] == lens
    for s in slices:
        part = lens[s]
        cost = sum(part) if layout == "packed" else len(part) * max(part)
        assert part
        assert cost <= min(budget, 40) or len(part) == 1
        assert layout == "packed" or len(part) <= 4


@pytest.mark.parametrize("ids", [[], [100], [-1], list(range(1, 42))])
def test_a_sequence_that_the_server_would_refuse_is_never_sent(ids: list[int]) -> None:
    with pytest.raises(RequestRejected, match="sequence 1"):
        cut([SEQUENCES[0], np.array(ids, np.int32)], model(), 1000)


def test_packed_tensors_are_concatenated_and_padded_ones_masked() -> None:
    packed = encode(SEQUENCES, model())
    assert packed["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10]]
    assert packed["seq_lens"].tolist() == [[3, 1, 2]]
    padded = encode(SEQUENCES, model("padded"))
    assert padded["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0], [9, 10, 0]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert {tensor.dtype for tensor in (*packed.values(), *padded.values())} == {np.dtype(np.int32)}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_no_number_is_a_rejected_request(value: float) -> None:
    answer = np.zeros((1, 3, 2), np.float32)
    answer[0, 1, 1] = value
    with pytest.raises(RequestRejected, match="1 of 3 rows, first row 1"):
        collect(answer, 3, model())


def test_scores_of_a_padded_model_are_read_with_the_dimension_that_the_server_adds_and_without_it() -> None:
    reranker = model("padded", role="reranker", dim=None)
    scores = np.array([1.5, -2.0, 0.25], np.float32)
    for answer in (scores, scores[:, None]):
        np.testing.assert_array_equal(collect(answer, 3, reranker), scores)
    for wrong in (scores[None, :], scores[:2, None]):
        with pytest.raises(RepositoryError, match="float32"):
            collect(wrong, 3, reranker)


@pytest.mark.parametrize("answer", [None, np.zeros((1, 3, 4), np.float32), np.zeros((1, 3, 2)), np.zeros((3, 2))])
def test_an_answer_of_another_shape_or_type_is_refused(answer: np.ndarray | None) -> None:
    with pytest.raises(RepositoryError, match="float32"):
        collect(answer, 3, model())


@pytest.mark.parametrize(
    "changes",
    [
        {"skillserve_digest": ""},
        {"skillserve_layout": "ragged"},
        {"skillserve_max_request_tokens": "many"},
        {"skillserve_vocab_size": "0"},
    ],
)
def test_a_configuration_without_sound_parameters_is_refused(changes: dict[str, str]) -> None:
    parameters = {"skillserve_digest": "e" * 64, "skillserve_layout": "packed", **changes}
    with pytest.raises(RepositoryError, match="skill_embedder"):
        ServedModel.from_config("embedder", version="1", parameters=parameters, output_dims=[-1, 2], max_batch_size=4)


INTERACTION = {"skillserve_late_window": "32", "skillserve_late_scale": "12.5"}


def token_embedder(**changes: str | None) -> ServedModel:
    """As `from_config` reads it; None leaves a parameter out."""
    parameters = {"skillserve_digest": "f" * 64, "skillserve_layout": "packed", **INTERACTION, **changes}
    return ServedModel.from_config(
        "token_embedder",
        version="1",
        parameters={name: value for name, value in parameters.items() if value is not None},
        output_dims=[-1, 2],
        max_batch_size=4,
    )


def test_a_token_embedder_says_what_scores_are_made_with_and_gives_rows_of_tokens() -> None:
    found = token_embedder()
    assert (found.name, found.dim, found.interaction) == ("skill_token_embedder", 2, Interaction(window=32, scale=12.5))
    assert [found.num_rows(SEQUENCES), model().num_rows(SEQUENCES)] == [6, 3]
    assert model().interaction is None
    answer = np.arange(12, dtype=np.float32).reshape(1, 6, 2)
    np.testing.assert_array_equal(collect(answer, found.num_rows(SEQUENCES), found), answer[0])
    with pytest.raises(RepositoryError, match="token_embedding"):
        collect(answer[:, :3], found.num_rows(SEQUENCES), found)
    answer[0, 4, 0] = np.nan
    with pytest.raises(RequestRejected, match="1 of 6 rows, first row 4"):
        collect(answer, found.num_rows(SEQUENCES), found)


@pytest.mark.parametrize("name", sorted(INTERACTION))
@pytest.mark.parametrize("value", [None, "", "many", "0", "-1", "nan", "inf"])
def test_a_token_embedder_without_a_sound_window_and_scale_is_refused(name: str, value: str | None) -> None:
    with pytest.raises(RepositoryError, match="skill_token_embedder"):
        token_embedder(**{name: value})


def test_a_padded_request_has_no_more_rows_than_the_server_joins() -> None:
    slices = cut([np.array([7], np.int32)] * 10, model("padded"), 1000)
    assert [s.stop - s.start for s in slices] == [4, 4, 2]


BUCKETS = (4, 16, 40)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 200))
def test_rows_are_filled_up_to_their_bucket_and_still_fit_the_budget(lens: list[int], budget: int) -> None:
    """The server joins requests of equal shape only: whatever the texts, there are three shapes."""
    served = model("padded", buckets=BUCKETS, max_request_tokens=200)
    sequences = [np.full(n, 7, np.int32) for n in lens]
    for part in cut(sequences, served, budget):
        tensors = encode(sequences[part], served)
        rows, width = tensors["input_ids"].shape
        assert width == min(end for end in BUCKETS if end >= max(lens[part]))
        assert rows * width <= min(budget, 200) or rows == 1
        assert tensors["attention_mask"].sum(axis=1).tolist() == lens[part]
        assert (tensors["input_ids"] == 7 * tensors["attention_mask"]).all()


def test_a_sequence_beyond_the_buckets_is_as_long_as_it_is() -> None:
    assert encode([np.full(41, 7, np.int32)], model("padded", buckets=BUCKETS))["input_ids"].shape == (1, 41)


@pytest.mark.parametrize("text", ["4,x", "16,4", "4,4", "0,4", ",", "4, 16"])
def test_buckets_that_are_no_ascending_lengths_are_refused(text: str) -> None:
    parameters = {"skillserve_digest": "d", "skillserve_layout": "padded", "skillserve_length_buckets": text}
    with pytest.raises(RepositoryError, match="ascending lengths"):
        ServedModel.from_config("embedder", version="1", parameters=parameters, output_dims=[2], max_batch_size=4)


def test_buckets_come_from_the_servers_configuration() -> None:
    parameters = {"skillserve_digest": "d", "skillserve_layout": "padded", "skillserve_length_buckets": "4,16"}
    served = ServedModel.from_config("embedder", version="1", parameters=parameters, output_dims=[2], max_batch_size=4)
    assert served.buckets == (4, 16)
    assert [served.width(longest) for longest in (1, 4, 5, 16, 17)] == [4, 4, 16, 16, 17]
