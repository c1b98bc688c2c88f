"""A reranker by late interaction, served as reader of single texts: exact in company, and searches that keep them."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as grpc
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

from skillserve.card import ModelCard, read_card
from skillserve.errors import BundleError
from skillserve.probe import read_probe
from skillserve.settings import ClientSettings, ExportSettings, IndexSettings, SearchSettings
from skillserve_bench.load.search import SearchTarget
from skillserve_client import Searcher
from skillserve_export import export_model
from skillserve_export.parity import PackedGraph, malformed_requests

MODEL = "skill_token_embedder"
OTHERS = ("skill_embedder", "skill_reranker")
TOLERANCE = 1e-5
QUANTISED = 0.05
"""Scores are cosines times 10, and eight bits turn those of 32 dimensions by up to 0.004."""
SEARCH = SearchSettings(candidates=30, rerank_depth=20, top_k=20)
WORDS = ["find", "skill", "sql", "query", "deploy", "test", "agent", "the", "and", "log", "index", *"abcdefghij"]

pytestmark = pytest.mark.e2e

Run = Callable[..., subprocess.CompletedProcess[str]]
Request = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def late_weights(
    make_base: Callable[..., Path], in_process: Run, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """Weights with a card, by seed."""

    def make(seed: int) -> Path:
        folder = tmp_path_factory.mktemp("late") / "weights"
        base = make_base("late-bert", "reranker", seed=seed)
        in_process("card", "--base", str(base), "--role", "reranker", "--out", str(folder), "--max-tokens", "60")
        return folder

    return make


@pytest.fixture(scope="module")
def three(
    late_weights: Callable[[int], Path],
    tiny_embedder: Path,
    in_process: Run,
    serve: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """A server of all three models, which waits 10 ms for requests to join."""
    repository = tmp_path_factory.mktemp("three")
    where = ("--repository", str(repository), "--max-request-tokens", "2048", "--max-queue-delay-microseconds", "10000")
    for weights in (tiny_embedder, late_weights(0)):
        in_process("export", str(weights), *where)
    with serve(repository, "--health-interval-s=3600") as running:
        yield running


@pytest.fixture(scope="module")
def bundles(three: Any, in_process: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of the same skills: with their token embeddings, and without. No skill has to be cut beside a request."""
    folder = tmp_path_factory.mktemp("kept")
    rng = np.random.default_rng(3)
    skills = [{"id": str(i)} | {key: words(rng, n) for key, n in SKILL.items()} for i in range(60)]
    (folder / "skills.jsonl").write_text("".join(json.dumps(skill) + "\n" for skill in skills))
    found = {"kept": folder / "kept", "pairs": folder / "pairs"}
    for name, bundle in found.items():
        kept = ["--token-embeddings", "60"] if name == "kept" else []
        where = ("--models", str(three.repository), "--bundles", str(bundle), "--url", three.url)
        in_process("index", str(folder / "skills.jsonl"), *where, *kept)
    return found


SKILL = {"name": 2, "description": 6, "body": 20}
"""Words of a skill's fields, each of them a token."""


def words(rng: np.random.Generator, num: int) -> str:
    return " ".join(rng.choice(WORDS, num))


async def ask(client: grpc.InferenceServerClient, model: str, output: str, ids: Any, lens: Any) -> np.ndarray:
    """One raw request of one batch row, sound or not."""
    inputs = []
    for name, values in (("input_ids", ids), ("seq_lens", lens)):
        tensor = np.asarray(values, np.int32)[None]
        inputs.append(InferInput(name, list(tensor.shape), "INT32"))
        inputs[-1].set_data_from_numpy(tensor)
    result = await client.infer(model, inputs)
    return np.asarray(result.as_numpy(output))


def test_one_reranker_is_served_as_two_models_that_pass_their_probes(three: Any) -> None:
    """Of the same digest; and each is ready."""

    async def differences() -> list[float]:
        found = []
        async with grpc.InferenceServerClient(three.url) as client:
            for name in (*OTHERS, MODEL):
                assert await client.is_model_ready(name)
                probe = read_probe(three.repository / name)
                answer = await ask(client, name, probe.output, probe.input_ids, probe.seq_lens)
                found.append(probe.differs_by(answer[0]) / probe.tolerance)
        return found

    assert max(asyncio.run(differences())) <= 1
    digests = {model["name"]: model["digest"] for model in three.ready["models"]}
    assert set(digests) == {*OTHERS, MODEL}
    assert digests[MODEL] == digests["skill_reranker"] == read_card(three.repository / MODEL).digest


def test_rows_come_home_unmixed_and_malformed_requests_are_refused_alone(three: Any) -> None:
    """Ten rounds of 16 clients, texts of 1 to 60 tokens, and in each round one of the malformed kinds among them."""
    card = read_card(three.repository / MODEL)
    graph = PackedGraph(three.repository / MODEL / "1" / "model.onnx")
    rng = np.random.default_rng(7)
    hazards = [(np.array(ids), np.array(lens)) for ids, lens in malformed_requests(card).values()]

    async def one_round(client: grpc.InferenceServerClient, hazard: Request) -> None:
        requests = [text_request(card, rng) for _ in range(16)]
        place = int(rng.integers(len(requests)))
        requests.insert(place, hazard)
        asked = (ask(client, MODEL, "token_embedding", *request) for request in requests)
        for i, answer in enumerate(await asyncio.gather(*asked, return_exceptions=True)):
            if i == place:
                assert isinstance(answer, InferenceServerException), f"{hazard} was answered"
                assert "INVALID_ARGUMENT" in str(answer.status()), answer
                continue
            assert isinstance(answer, np.ndarray), answer
            ids, lens = requests[i]
            alone = graph.run_raw(ids, lens, [len(ids)], [len(lens)])
            assert answer.shape == (1, len(ids), 32)
            np.testing.assert_allclose(answer[0], alone, atol=TOLERANCE, rtol=0)

    async def all_rounds() -> tuple[int, int]:
        async with grpc.InferenceServerClient(three.url) as client:
            before = await counted(client, MODEL)
            for number in range(10):
                await one_round(client, hazards[number % len(hazards)])
            after = await counted(client, MODEL)
        return after[0] - before[0], after[1] - before[1]

    requests, executions = asyncio.run(all_rounds())
    assert requests / executions > 2


def text_request(card: ModelCard, rng: np.random.Generator) -> Request:
    """One to three texts of any lengths."""
    lens = rng.integers(1, card.max_tokens + 1, rng.integers(1, 4))
    return rng.integers(0, card.vocab_size, lens.sum()), lens


async def counted(client: grpc.InferenceServerClient, model: str) -> tuple[int, int]:
    """Inferences and executions so far; those answered last may be missing."""
    [found] = (await client.get_inference_statistics(model)).model_stats
    return int(found.inference_count), int(found.execution_count)


def test_kept_token_embeddings_find_what_pairs_find(three: Any, bundles: dict[str, Path]) -> None:
    """Within their rounding; and of the two served models each bundle asks its own."""
    rng = np.random.default_rng(5)
    requests = [words(rng, n) for n in rng.integers(1, 16, 20)]
    answers = {}
    asked = {}
    for name, bundle in bundles.items():
        before = inferences(three)
        with Searcher.connect(bundle, client=ClientSettings(url=three.url), settings=SEARCH) as searcher:
            answers[name] = [searcher.search(request) for request in requests]
        asked[name] = [after - earlier for after, earlier in zip(inferences(three), before, strict=True)]
    assert asked["pairs"][1] == 0 < asked["pairs"][0]
    assert asked["kept"][0] == 0 < asked["kept"][1]
    plain = 0
    for kept, pairs in zip(answers["kept"], answers["pairs"], strict=True):
        assert kept.status == pairs.status == "ok"
        scores = {hit.skill_id: hit.score for hit in pairs.hits}
        assert {hit.skill_id for hit in kept.hits} == set(scores)
        np.testing.assert_allclose(
            [hit.score for hit in kept.hits], [scores[hit.skill_id] for hit in kept.hits], rtol=0, atol=QUANTISED
        )
        if pairs.hits[0].score - pairs.hits[1].score > 2 * QUANTISED:
            plain += 1
            assert kept.hits[0].skill_id == pairs.hits[0].skill_id
    assert plain > len(requests) / 2


def test_a_load_may_rerank_by_pairs_what_keeps_token_embeddings(three: Any, bundles: dict[str, Path]) -> None:
    """As on a server of padded models, which has no token embedder; the hits are those of a bundle that keeps none."""
    client = ClientSettings(url=three.url)
    before = inferences(three)

    async def sent(bundle: Path) -> bytes:
        async with SearchTarget(client, IndexSettings(bundles=bundle), SEARCH, by_pairs=True).open() as send:
            return await send(b"find the sql skill")

    kept, pairs = (asyncio.run(sent(bundles[name])) for name in ("kept", "pairs"))
    assert kept == pairs
    assert [after - earlier for after, earlier in zip(inferences(three), before, strict=True)][1] == 0


def inferences(server: Any) -> list[int]:
    """So far, of the reranker and of the token embedder."""
    found = []
    for name in ("skill_reranker", MODEL):
        with urllib.request.urlopen(f"{server.ready['http']}/v2/models/{name}/stats") as response:  # noqa: S310 -- our own server
            found.append(int(json.load(response)["model_stats"][0]["inference_count"]))
    return found


def test_another_rerankers_token_embedder_is_refused(
    three: Any, bundles: dict[str, Path], late_weights: Callable[[int], Path], serve: Callable[..., Any], tmp_path: Path
) -> None:
    """After a restart: bundles with token embeddings do without it, by name; one that asks about pairs goes on."""
    repository = tmp_path / "models"
    shutil.copytree(three.repository, repository)
    export_model(late_weights(1), ExportSettings(repository=tmp_path / "others"))
    shutil.rmtree(repository / MODEL)
    shutil.copytree(tmp_path / "others" / MODEL, repository / MODEL)
    with serve(repository, "--health-interval-s=3600") as restarted:
        client = ClientSettings(url=restarted.url)
        with pytest.raises(BundleError, match="token_embedder"):
            Searcher.connect(bundles["kept"], client=client, settings=SEARCH)
        with Searcher.connect(bundles["pairs"], client=client, settings=SEARCH) as searcher:
            assert searcher.search("find the sql skill").hits
