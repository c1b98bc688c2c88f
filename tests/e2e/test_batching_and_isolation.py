"""Requests of any lengths are joined by the real server, and a malformed one never touches those joined with it."""

from __future__ import annotations

import asyncio
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
from skillserve.errors import RequestRejected
from skillserve.settings import ClientSettings, ExportSettings
from skillserve_client import Triton
from skillserve_export import export_model
from skillserve_export.parity import PackedGraph, malformed_requests

MODEL = "skill_embedder"
TOLERANCE = 1e-6
ANSWER_TOLERANCE = 1e-5
ROUNDS = 200
NUM_CLIENTS = 32
MAX_BATCH_SIZE = ExportSettings().max_batch_size
"""Of all models here; more than the clients of a test ever send at once."""

pytestmark = pytest.mark.e2e

Request = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def card(server: Any) -> ModelCard:
    return read_card(server.repository / MODEL)


@pytest.fixture(scope="module")
def graph(server: Any) -> PackedGraph:
    return PackedGraph(server.repository / MODEL / "1" / "model.onnx")


async def send(client: grpc.InferenceServerClient, ids: np.ndarray, lens: np.ndarray) -> np.ndarray:
    """One raw request, sound or not; shapes as given."""
    inputs = []
    for name, value in (("input_ids", ids), ("seq_lens", lens)):
        tensor = np.asarray(value, np.int32)
        item = InferInput(name, list(tensor.shape), "INT32")
        item.set_data_from_numpy(tensor)
        inputs.append(item)
    result = await client.infer(MODEL, inputs)
    return np.asarray(result.as_numpy("embedding"))


def random_request(card: ModelCard, rng: np.random.Generator) -> Request:
    lens = rng.integers(1, card.max_tokens, rng.integers(1, 4))
    return rng.integers(0, card.vocab_size, (1, lens.sum())), lens[None, :]


def expected(graph: PackedGraph, ids: np.ndarray, lens: np.ndarray) -> np.ndarray:
    """The in-process graph, this request alone."""
    return graph.run_raw(ids[0], lens[0], [ids.shape[1]], [lens.shape[1]])[None]


async def counted(client: grpc.InferenceServerClient) -> tuple[int, int]:
    """Requests and executions so far, all that were answered among them.

    Triton answers first and counts afterwards, so that figures read at once may miss what was answered last. The one
    instance executes batches one after the other: once it answers a further request, all earlier ones are counted.
    That request, refused by the backend, fills a batch of its own, does not wait for company, and is left out.
    """
    with pytest.raises(InferenceServerException, match="wanted"):
        await send(client, np.full((MAX_BATCH_SIZE, 1), 5), np.full((MAX_BATCH_SIZE, 1), 2))
    found = (await client.get_inference_statistics(MODEL)).model_stats[0].batch_stats
    sizes = {int(batch.batch_size): int(batch.compute_infer.count) for batch in found}
    sizes.pop(MAX_BATCH_SIZE, None)  # the first of these may itself not be counted yet
    return sum(size * num for size, num in sizes.items()), sum(sizes.values())


def test_mixed_lengths_are_joined_and_every_answer_is_exact(server: Any, card: ModelCard, graph: PackedGraph) -> None:
    """32 clients with one query each: the mean batch says that ragged requests were executed together."""
    rng = np.random.default_rng(11)
    queries = [rng.integers(0, card.vocab_size, (1, n)) for n in rng.integers(5, card.max_tokens, NUM_CLIENTS * 8)]

    async def all_clients() -> tuple[list[np.ndarray], tuple[int, int], tuple[int, int]]:
        async with grpc.InferenceServerClient(server.url) as client:

            async def one(mine: list[np.ndarray]) -> list[np.ndarray]:
                return [await send(client, ids, np.array([[ids.shape[1]]])) for ids in mine]

            before = await counted(client)
            parts = await asyncio.gather(*(one(queries[i::NUM_CLIENTS]) for i in range(NUM_CLIENTS)))
            after = await counted(client)
        answers: list[np.ndarray] = [np.empty(0)] * len(queries)
        for i, part in enumerate(parts):
            answers[i::NUM_CLIENTS] = part
        return answers, before, after

    answers, before, after = asyncio.run(all_clients())
    for ids, answer in zip(queries, answers, strict=True):
        np.testing.assert_allclose(
            answer, expected(graph, ids, np.array([[ids.shape[1]]])), atol=ANSWER_TOLERANCE, rtol=0
        )
    requests, executions = np.subtract(after, before)
    assert requests == len(queries)
    # The benchmark measures how many; here it is enough that lengths do not keep requests apart.
    assert requests / executions > 2


def hazards(card: ModelCard, rng: np.random.Generator) -> list[list[Request]]:
    """One or two malformed requests each; pairs are those whose errors cancel when they are joined."""
    single = [[(np.array([ids]), np.array([lens]))] for ids, lens in malformed_requests(card).values()]
    word = card.vocab_size // 2
    ids = np.full((1, 5), word)
    return [
        *single,
        [(ids, np.array([[6]])), (ids, np.array([[4]]))],
        [(np.zeros((1, 0)), np.array([[3]]))],
        [(np.full((1, 3), word), np.zeros((1, 0)))],
        [(np.zeros((1, 0)), np.zeros((1, 0)))],
        [(np.zeros((1, 0)), np.array([[0]]))],
        [(rng.integers(0, card.vocab_size, (1, 3_000)), np.full((1, 100), 30))],
    ]


@pytest.fixture(scope="module")
def patient_server(
    serve: Callable[..., Any], tiny_embedder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A server that waits 30 ms for requests to join: long enough for all that a round sends; nobody else asks it."""
    repository = tmp_path_factory.mktemp("patient")
    settings = ExportSettings(repository=repository, max_request_tokens=2_048, max_queue_delay_microseconds=30_000)
    export_model(tiny_embedder, settings)
    with serve(repository, "--health-interval-s=3600") as running:
        yield running


def test_malformed_requests_never_touch_those_joined_with_them(
    patient_server: Any, card: ModelCard, graph: PackedGraph
) -> None:
    """200 rounds; the server waits a little for company, so that six good requests and the bad ones are joined."""
    rng = np.random.default_rng(13)
    joined = []

    async def round_trip(client: grpc.InferenceServerClient, bad: list[Request], before: int) -> int:
        """Returns the executions after this round; `before` are those ahead of it."""
        good = [random_request(card, rng) for _ in range(6)]
        requests = [(request, True) for request in good]
        for request in bad:
            requests.insert(rng.integers(0, len(requests) + 1), (request, False))
        answers = await asyncio.gather(*(send(client, *request) for request, _ in requests), return_exceptions=True)
        _, after = await counted(client)
        joined.append(after - before)
        for (request, sound), answer in zip(requests, answers, strict=True):
            if sound:
                assert isinstance(answer, np.ndarray), answer
                np.testing.assert_allclose(answer, expected(graph, *request), atol=TOLERANCE, rtol=0)
            else:
                assert isinstance(answer, InferenceServerException), f"{request} was answered"
                assert "INVALID_ARGUMENT" in str(answer.status()), answer
                assert "/tmp" not in str(answer.message()), "an error must not name the server's files"  # noqa: S108
        return after

    async def all_rounds() -> None:
        async with grpc.InferenceServerClient(patient_server.url) as client:
            kinds = hazards(card, rng)
            _, executions = await counted(client)
            for number in range(ROUNDS):
                executions = await round_trip(client, kinds[number % len(kinds)], executions)

    asyncio.run(all_rounds())
    # All requests of a round share one execution, but for rounds in which the machine was busy with other things.
    assert np.median(joined) == 1
    with Triton(ClientSettings(url=patient_server.url)) as triton:
        assert triton.infer("embedder", [np.array([5, 6], np.int32)]).shape == (1, 32)


@pytest.mark.parametrize(
    ("ids", "lens"),
    [([5, -1, 7], [3]), ([5, 10_000, 7], [3]), ([5, 6, 7], [2]), ([5] * 60, [60])],
    ids=["id below zero", "id above the vocabulary", "lengths that do not add up", "over-long sequence"],
)
def test_a_malformed_request_is_an_invalid_argument(
    server: Any, triton: Triton, ids: list[int], lens: list[int]
) -> None:
    """And the server stays up."""

    async def one() -> None:
        async with grpc.InferenceServerClient(server.url) as client:
            await send(client, np.array([ids]), np.array([lens]))

    with pytest.raises(InferenceServerException, match="wanted"):
        asyncio.run(one())
    with urllib.request.urlopen(f"{server.ready['http']}/v2/health/ready") as response:  # noqa: S310 -- our own server
        assert response.status == 200
    assert np.isfinite(triton.infer("embedder", [np.array([5], np.int32)])).all()


def test_the_client_turns_a_refusal_into_its_own_error(triton: Triton) -> None:
    with pytest.raises(RequestRejected):
        triton.infer("embedder", [np.array([5, 10_000], np.int32)])


def test_a_large_call_is_cut_and_comes_back_in_order(server: Any, card: ModelCard, graph: PackedGraph) -> None:
    """More tokens than one request may carry: the client cuts, the server joins, the order holds."""
    rng = np.random.default_rng(5)
    sequences = [rng.integers(0, card.vocab_size, n).astype(np.int32) for n in rng.integers(1, card.max_tokens, 300)]
    with Triton(ClientSettings(url=server.url, max_request_tokens=500)) as client:
        rows = client.infer("embedder", sequences)
    alone = np.concatenate([graph.run([sequence]) for sequence in sequences])
    np.testing.assert_allclose(rows, alone, atol=ANSWER_TOLERANCE, rtol=0)
