"""What is sent: lengths as drawn, the frame intact, the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from skillserve.errors import CatalogueError
from skillserve_bench.messages import messages, rows
from skillserve_bench.workload import LONGEST, SHORTEST, make_workload, mixed_lengths
from skillserve_client import ServedModel


def served(layout: str) -> ServedModel:
    """A model as a server would describe it."""
    return ServedModel.from_config(
        "embedder",
        version="1",
        parameters={"skillserve_digest": "d" * 64, "skillserve_layout": layout},
        output_dims=[-1, 3],
        max_batch_size=8,
    )


def test_lengths_cover_the_range_and_follow_the_seed() -> None:
    lens = mixed_lengths(2000, seed=3)
    assert set(lens) == set(range(SHORTEST, LONGEST + 1))
    assert lens == mixed_lengths(2000, seed=3)
    assert lens != mixed_lengths(2000, seed=4)


def test_real_requests_are_cut_to_the_drawn_lengths_inside_their_frame(tiny_embedder: Path, sample_data: Path) -> None:
    lens = [5, 48, 17, 5]
    workload = make_workload(tiny_embedder, lens, data=sample_data, seed=1)
    assert [len(sequence) for sequence in workload.sequences] == lens
    first, last = workload.sequences[0][0], workload.sequences[0][-1]
    assert all((sequence[0], sequence[-1]) == (first, last) for sequence in workload.sequences)
    assert "test split" in workload.source
    assert workload.mean_tokens == np.mean(lens)


def test_without_data_the_ids_are_random_and_known_to_the_model(tiny_embedder: Path) -> None:
    workload = make_workload(tiny_embedder, [7, 9], data=None, seed=1)
    again = make_workload(tiny_embedder, [7, 9], data=None, seed=1)
    assert [len(sequence) for sequence in workload.sequences] == [7, 9]
    assert all(np.array_equal(a, b) for a, b in zip(workload.sequences, again.sequences, strict=True))


def test_requests_that_are_too_short_are_named(tiny_embedder: Path, tmp_path: Path) -> None:
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries" / "test.jsonl").write_text(json.dumps({"id": "1", "query": "sql"}) + "\n")
    with pytest.raises(CatalogueError, match="6 tokens together"):
        make_workload(tiny_embedder, [40], data=tmp_path, seed=1)


def test_a_folder_without_a_test_split_is_named(tiny_embedder: Path, tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="no queries/test file"):
        make_workload(tiny_embedder, [8], data=tmp_path, seed=1)


def test_messages_carry_the_layout_of_the_model_and_the_padding_that_was_asked_for() -> None:
    sequence = np.array([4, 5, 6], np.int32)
    packed = service_pb2.ModelInferRequest.FromString(messages(served("packed"), [[sequence]])[0])
    assert {tensor.name: list(tensor.shape) for tensor in packed.inputs} == {"input_ids": [1, 3], "seq_lens": [1, 1]}
    padded = service_pb2.ModelInferRequest.FromString(messages(served("padded"), [[sequence]], pad_to=5)[0])
    ids, mask = (np.frombuffer(content, np.int32).tolist() for content in padded.raw_input_contents)
    assert (ids, mask) == ([4, 5, 6, 0, 0], [1, 1, 1, 0, 0])


def test_answers_are_read_back_as_rows() -> None:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="embedding", datatype="FP32", shape=[1, 1, 3])
    response.raw_output_contents.append(np.array([1, 2, 3], np.float32).tobytes())
    answer = response.SerializeToString()
    np.testing.assert_array_equal(rows([answer, answer], served("packed")), [[1, 2, 3]] * 2)
