"""A model in this process answers as the backend does, says which requests it refuses, and finds poison alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.errors import BundleError, RepositoryError, RequestRejected, ServerError
from skillserve.scoring import open_local
from skillserve.tensors import INPUT_IDS, SEQ_LENS, Role, pack
from skillserve_client.batch.direct import DirectInference
from skillserve_client.batch.engine import Engine

TOLERANCE = 1e-5
"""Sums of at most 12 float32 numbers of size 1 in different orders differ by a few 1e-7."""

ROLES: tuple[Role, ...] = ("embedder", "reranker")


def wire(ids: list[int], lens: list[int]) -> dict[str, np.ndarray]:
    return {INPUT_IDS: np.array([ids], np.int32), SEQ_LENS: np.array([lens], np.int32)}


@pytest.fixture
def repository(toys: Any, tmp_path: Path) -> Path:
    for model in ("skill_embedder", "skill_reranker"):
        toys.write_model(tmp_path / "models", model)
    return tmp_path / "models"


def direct(repository: Path) -> DirectInference:
    return DirectInference(repository, ROLES, max_request_tokens=30)


def test_answers_are_the_wires_and_faults_have_their_kind(toys: Any, repository: Path) -> None:
    model = open_local(repository / "skill_embedder" / "1", toys.config())
    rows = model.answer(wire([3, 1, 4, 1, 5], [2, 3]))
    assert rows.shape == (1, 2, toys.dim)
    assert np.allclose(rows[0], toys.naive("skill_embedder", [3, 1, 4, 1, 5], [2, 3]), atol=TOLERANCE)
    with pytest.raises(RequestRejected, match="sum to 4"):
        model.answer(wire([3, 1, 4, 1, 5], [2, 2]))
    for trap in (toys.nan_id, toys.crash_id):
        with pytest.raises(ServerError) as caught:
            model.answer(wire([trap], [1]))
        assert type(caught.value) is ServerError


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_repositorys_own_configuration_serves_both_layouts(toys: Any, tmp_path: Path, layout: str) -> None:
    """config.pbtxt itself is read here, as Triton reads it for a server."""
    for name in ("skill_embedder", "skill_reranker"):
        toys.write_model(tmp_path, name, padded=layout == "padded")
    inference = direct(tmp_path)
    sequences = [np.array(ids, np.int32) for ids in ([3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3], [2, 3])] * 4
    packed = pack(sequences)
    for role, name in zip(ROLES, ("skill_embedder", "skill_reranker"), strict=True):
        assert inference.served(role).layout == layout
        rows = inference.infer(role, sequences, digest=inference.served(role).digest)
        wanted = toys.naive(name, packed.input_ids[0].tolist(), packed.seq_lens[0].tolist())
        assert np.allclose(rows, wanted, atol=TOLERANCE)
    assert inference.infer("embedder", []).shape == (0, toys.dim)


def test_another_models_sequences_are_refused(repository: Path) -> None:
    with pytest.raises(BundleError, match="model repository"):
        direct(repository).infer("embedder", [np.ones(2, np.int32)], digest="0" * 64)


def test_a_repository_at_fault_says_what_to_do(toys: Any, repository: Path) -> None:
    with pytest.raises(RepositoryError, match=r"config\.pbtxt"):
        direct(repository.parent)
    toys.write_model(repository.parent / "gpu", "skill_embedder", extra="optimization { cuda { graphs: true } }")
    with pytest.raises(RepositoryError, match="optimization"):
        DirectInference(repository.parent / "gpu", ("embedder",), max_request_tokens=30)


def test_rows_that_are_no_numbers_are_refused_alone(toys: Any, repository: Path) -> None:
    """A real graph under a real runtime: two rows are NaN, one makes the runtime fail."""
    sequences = [np.array([i % 28, i % 5, 1], np.int32) for i in range(24)]
    for i, trap in ((3, toys.nan_id), (4, toys.crash_id), (20, toys.nan_id)):
        sequences[i][1] = trap
    sequences[9] = np.ones(toys.max_sequence_tokens + 1, np.int32)
    inference = direct(repository)
    digest = inference.served("embedder").digest
    with Engine(inference, num_workers=1, max_run_tokens=30, patience_s=0.0) as engine:
        found = engine.infer("embedder", sequences, digest=digest, advance=lambda _: None)
    assert sorted(found.refused) == [3, 4, 9, 20]
    assert "not finite" in found.refused[3]
    assert "1 to 12 tokens" in found.refused[9]
    sound = [i for i in range(24) if i not in found.refused]
    packed = pack([sequences[i] for i in sound])
    wanted = toys.naive("skill_embedder", packed.input_ids[0].tolist(), packed.seq_lens[0].tolist())
    assert np.allclose(found.rows[sound], wanted, atol=TOLERANCE)
