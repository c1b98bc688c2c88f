"""Models of other families, from a published base to the real server's answers; one of them in two files."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForCausalLM

from skillserve.card import read_card
from skillserve.settings import ClientSettings, ExportSettings
from skillserve.tensors import Ids
from skillserve_client import Triton
from skillserve_export import export_model, graph
from skillserve_export.files import write_whole

TOLERANCE = 1e-5

pytestmark = pytest.mark.e2e


MOST_TOKENS = {"modernbert": 200, "qwen3": 400, "late-bert": 60}


@pytest.fixture(scope="module")
def exported(
    in_process: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Path], Path]:
    """Give a published base its card, and export it into a repository of its own; returns that."""

    def export(role: str, base: Path) -> Path:
        folder = tmp_path_factory.mktemp(role)
        command = ["card", "--base", str(base), "--role", role, "--out", str(folder / "weights")]
        in_process(*command, "--max-tokens", str(MOST_TOKENS[family_of(base)]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graph, "write_whole", functools.partial(write_whole, one_file_bytes=20_000))
            export_model(folder / "weights", ExportSettings(repository=folder / "models"))
        assert (folder / "models" / f"skill_{role}" / "1" / "model.onnx.data").is_file()
        return folder / "models"

    return export


@pytest.fixture(scope="module")
def embedder(make_base: Callable[..., Path], exported: Callable[[str, Path], Path]) -> tuple[Path, Path]:
    """An embedder that is nothing like BERT: base and repository."""
    base = make_base("modernbert", "embedder")
    return base, exported("embedder", base)


@pytest.fixture(scope="module", params=["qwen3", "late-bert"])
def reranker(
    request: pytest.FixtureRequest, make_base: Callable[..., Path], exported: Callable[[str, Path], Path]
) -> tuple[Path, Path]:
    """Rerankers that are no classifiers: base and repository."""
    base = make_base(request.param, "reranker")
    return base, exported("reranker", base)


@pytest.fixture(scope="module")
def bases(embedder: tuple[Path, Path], reranker: tuple[Path, Path]) -> dict[str, Path]:
    """By role."""
    return {"embedder": embedder[0], "reranker": reranker[0]}


@pytest.fixture(scope="module")
def triton(
    embedder: tuple[Path, Path],
    reranker: tuple[Path, Path],
    serve: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Triton]:
    """A client of a server that serves both."""
    repository = tmp_path_factory.mktemp("families") / "models"
    for _, models in (embedder, reranker):
        shutil.copytree(models, repository, dirs_exist_ok=True)
    with serve(repository) as server, Triton(ClientSettings(url=server.url)) as client:
        assert client.served("reranker").digest == read_card(repository / "skill_reranker").digest
        yield client


def family_of(base: Path) -> str:
    """As its configuration names it."""
    return str(json.loads((base / "config.json").read_bytes())["model_type"])


def sequences(most: int) -> list[Ids]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 300, n).astype(np.int32) for n in (1, most, 9, 77)]


def test_embeddings_of_a_modernbert_are_transformers_own(triton: Triton, bases: dict[str, Path]) -> None:
    texts = sequences(MOST_TOKENS["modernbert"])
    model = AutoModel.from_pretrained(bases["embedder"]).eval()
    with torch.no_grad():
        first = [model(input_ids=torch.from_numpy(ids[None]).long())[0][0, 0] for ids in texts]
    wanted = torch.nn.functional.normalize(torch.stack(first), dim=-1)
    np.testing.assert_allclose(triton.infer("embedder", texts), wanted.numpy(), rtol=0, atol=TOLERANCE)


def test_scores_are_those_that_transformers_states_give(
    triton: Triton, bases: dict[str, Path], late_score: Callable[[Path, Ids], float]
) -> None:
    """Of a Qwen3 the gaps of its logits, of late interaction the best stretches of requests."""
    base = bases["reranker"]
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    if family_of(base) == "late-bert":
        pairs = _late_pairs(tokenizer.token_to_id("[CLS]"))
        wanted = np.array([late_score(base, pair) for pair in pairs])
    else:
        pairs = sequences(MOST_TOKENS["qwen3"])
        model = AutoModelForCausalLM.from_pretrained(base).eval()
        yes, no = (tokenizer.token_to_id(answer) for answer in ("yes", "no"))
        with torch.no_grad():
            last = [model(input_ids=torch.from_numpy(ids[None]).long()).logits[0, -1] for ids in pairs]
        wanted = torch.stack([logits[yes] - logits[no] for logits in last]).numpy()
    found = triton.infer("reranker", pairs)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(wanted).max())))


def _late_pairs(opening: int) -> list[Ids]:
    """Three skills for each of two requests."""
    rng = np.random.default_rng(0)
    requests, skills = ([rng.integers(10, 100, n) for n in lens] for lens in ((20, 5), (30, 3, 12)))
    return [np.array([opening, *request, opening, *skill], np.int32) for request in requests for skill in skills]
