"""Both clients against a gRPC server that speaks Triton's messages."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from skillserve.errors import (
    ConfigError,
    DeadlineExceeded,
    RepositoryError,
    RequestRejected,
    ServerError,
    ServerOverloaded,
    ServerUnreachable,
)
from skillserve.max_sim import Interaction
from skillserve.settings import ClientSettings
from skillserve.tensors import Ids, Role
from skillserve_client.triton import AsyncTriton, Triton, open_channel
from skillserve_client.wire import Floats

Computed = Callable[[Role, Sequence[Ids]], Floats]
SEQUENCES = [np.arange(5, 5 + 1 + i % 20, dtype=np.int32) for i in range(60)]
PAIRS = [np.array([2, 7, 8, 3, 8, *range(9, 9 + i), 3], np.int32) for i in range(20)]


def call(kind: str, settings: ClientSettings, method: str, *arguments: Any, **named: Any) -> Any:
    """One call through either client."""
    if kind == "blocking":
        with Triton(settings) as triton:
            return getattr(triton, method)(*arguments, **named)

    async def run() -> Any:
        async with AsyncTriton(settings) as triton:
            return await getattr(triton, method)(*arguments, **named)

    return asyncio.run(run())


@pytest.fixture(params=["blocking", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_rows_of_tokens_come_back_in_order_and_progress_counts_sequences(
    kind: str, late_wire_server: Any, wire_settings: ClientSettings, computed: Computed
) -> None:
    settings = wire_settings.model_copy(update={"max_request_tokens": 30})
    ticks: list[int] = []
    late_wire_server.delay_s = 0.01
    rows = call(kind, settings, "infer", "token_embedder", SEQUENCES, progress=ticks.append)
    assert rows.shape == (sum(map(len, SEQUENCES)), 8)
    np.testing.assert_array_equal(rows, computed("token_embedder", SEQUENCES))
    assert sum(ticks) == len(SEQUENCES)
    assert len(late_wire_server.requests) > 20
    assert all(request["input_ids"].size <= 30 for request in late_wire_server.requests)
    ticks.clear()
    one = call(kind, settings, "infer", "token_embedder", SEQUENCES[9:11], progress=ticks.append)
    np.testing.assert_array_equal(one, computed("token_embedder", SEQUENCES[9:11]))
    assert ticks == [2]
    assert call(kind, settings, "infer", "token_embedder", []).shape == (0, 8)
    model = call(kind, settings, "served", "token_embedder")
    assert (model.dim, model.interaction) == (8, Interaction(window=4, scale=10.0))
    late_wire_server.poison = 20
    with pytest.raises(RequestRejected, match="skill_token_embedder"):
        call(kind, settings, "infer", "token_embedder", SEQUENCES)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_many_requests_come_back_in_order_within_every_bound(
    kind: str, layout: str, wire_server: Any, wire_settings: ClientSettings, computed: Computed
) -> None:
    wire_server.layout, wire_server.delay_s = layout, 0.01
    settings = wire_settings.model_copy(update={"num_in_flight": 3})
    ticks: list[int] = []
    vectors = call(kind, settings, "infer", "embedder", SEQUENCES, progress=ticks.append)
    np.testing.assert_array_equal(vectors, computed("embedder", SEQUENCES))
    assert sum(ticks) == len(SEQUENCES)
    assert 1 < wire_server.most_at_once <= 3
    assert all(request["input_ids"].size <= 64 for request in wire_server.requests)
    assert {int(request["version"]) for request in wire_server.requests} == {10}
    scores = call(kind, settings, "infer", "reranker", PAIRS)
    np.testing.assert_array_equal(scores, computed("reranker", PAIRS))


def test_the_clients_own_budget_cuts_finer_than_the_servers(
    kind: str, wire_server: Any, wire_settings: ClientSettings
) -> None:
    call(kind, wire_settings.model_copy(update={"max_request_tokens": 21}), "infer", "embedder", SEQUENCES)
    assert max(request["input_ids"].size for request in wire_server.requests) <= 21


def test_no_sequences_have_no_rows(kind: str, wire_server: Any, wire_settings: ClientSettings) -> None:
    assert call(kind, wire_settings, "infer", "embedder", []).shape == (0, 16)
    assert call(kind, wire_settings, "infer", "reranker", []).shape == (0,)
    assert not wire_server.requests


def test_a_served_model_is_described_from_its_configuration(kind: str, wire_settings: ClientSettings) -> None:
    model = call(kind, wire_settings, "served", "embedder")
    assert (model.version, model.layout, model.digest, model.dim) == ("10", "packed", "e" * 64, 16)
    assert (model.max_request_tokens, model.max_sequence_tokens, model.vocab_size) == (64, 48, None)


def test_a_server_says_its_version(kind: str, wire_settings: ClientSettings) -> None:
    assert call(kind, wire_settings, "server") == "triton 2.51.0"


def test_statistics_are_totals(kind: str, wire_settings: ClientSettings) -> None:
    statistics = call(kind, wire_settings, "statistics", "embedder")
    assert (statistics.num_requests, statistics.num_failed, statistics.queue_ms) == (7, 0, 3.0)


@pytest.mark.parametrize(
    ("code", "message", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", ServerOverloaded),
        (grpc.StatusCode.UNAVAILABLE, "Request timeout expired", ServerOverloaded),
        (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape", RequestRejected),
        (grpc.StatusCode.INTERNAL, "onnx runtime error", ServerError),
    ],
)
def test_a_failure_becomes_ours_and_is_sent_only_once(
    code: grpc.StatusCode,
    message: str,
    error: type[Exception],
    kind: str,
    wire_server: Any,
    wire_settings: ClientSettings,
) -> None:
    wire_server.aborts = [(code, message)]
    with pytest.raises(error, match=message) as caught:
        call(kind, wire_settings, "infer", "embedder", SEQUENCES[:1])
    assert type(caught.value) is error
    assert caught.value.__cause__ is not None
    assert not wire_server.requests


def test_a_lost_connection_is_tried_again(kind: str, wire_server: Any, wire_settings: ClientSettings) -> None:
    wire_server.aborts = [(grpc.StatusCode.UNAVAILABLE, "Socket closed")] * 2
    assert call(kind, wire_settings, "infer", "embedder", SEQUENCES[:1]).shape == (1, 16)
    wire_server.aborts = [(grpc.StatusCode.UNAVAILABLE, "Socket closed")] * 3
    with pytest.raises(ServerUnreachable):
        call(kind, wire_settings, "infer", "embedder", SEQUENCES[:1])


def test_an_absent_model_is_asked_for_again_once(kind: str, wire_server: Any, wire_settings: ClientSettings) -> None:
    gone = (grpc.StatusCode.NOT_FOUND, "unknown model")
    wire_server.aborts = [gone]
    assert call(kind, wire_settings, "infer", "embedder", SEQUENCES[:1]).shape == (1, 16)
    wire_server.aborts = [gone] * 2
    with pytest.raises(RepositoryError):
        call(kind, wire_settings, "infer", "embedder", SEQUENCES[:1])


def test_a_row_of_nan_is_a_rejected_request(kind: str, wire_server: Any, wire_settings: ClientSettings) -> None:
    wire_server.poison = 24
    with pytest.raises(RequestRejected, match="NaN"):
        call(kind, wire_settings, "infer", "embedder", SEQUENCES)


def test_a_slow_server_meets_the_deadline_of_the_whole_call(
    kind: str, wire_server: Any, wire_settings: ClientSettings
) -> None:
    """One request at a time, each within the deadline, all of them not."""
    wire_server.delay_s = 0.2
    settings = wire_settings.model_copy(update={"num_in_flight": 1})
    with pytest.raises(DeadlineExceeded):
        call(kind, settings, "infer", "embedder", SEQUENCES, timeout_s=0.3)


def test_a_request_behind_our_own_others_gets_their_time_too(
    kind: str, wire_server: Any, wire_settings: ClientSettings
) -> None:
    """Four in flight on a server that works through them in turn: the last one waits for all, and that is no fault."""
    wire_server.in_turn, wire_server.delay_s = True, 0.3
    settings = wire_settings.model_copy(update={"num_in_flight": 4, "timeout_s": 0.8})
    assert call(kind, settings, "infer", "embedder", [np.full(48, 7, np.int32)] * 4).shape == (4, 16)


def test_after_a_failure_nothing_more_is_sent(kind: str, wire_server: Any, wire_settings: ClientSettings) -> None:
    wire_server.aborts = [(grpc.StatusCode.INTERNAL, "broken")]
    wire_server.delay_s = 0.05
    settings = wire_settings.model_copy(update={"num_in_flight": 1, "max_request_tokens": 20})
    with pytest.raises(ServerError, match="broken"):
        call(kind, settings, "infer", "embedder", SEQUENCES)
    assert len(wire_server.requests) <= 2


def test_a_client_that_stays_open_sends_nothing_more_either(wire_server: Any, wire_settings: ClientSettings) -> None:
    """Closing would stop what is waiting, so this one is not closed."""
    wire_server.aborts = [(grpc.StatusCode.INTERNAL, "broken")]
    settings = wire_settings.model_copy(update={"num_in_flight": 1, "max_request_tokens": 20})
    with Triton(settings) as triton:
        with pytest.raises(ServerError, match="broken"):
            triton.infer("embedder", SEQUENCES)
        assert triton.infer("embedder", SEQUENCES[:1]).shape == (1, 16)
        sent = len(wire_server.requests)
        time.sleep(0.2)
        assert len(wire_server.requests) == sent <= 3


def test_nobody_listening_is_an_unreachable_server(kind: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerUnreachable, match="skillserve serve"):
            call(kind, ClientSettings(url=url, timeout_s=2), "served", "embedder")


def test_a_closed_client_says_so(wire_settings: ClientSettings) -> None:
    triton = Triton(wire_settings)
    triton.infer("embedder", SEQUENCES[:1])
    triton.close()
    with pytest.raises(ServerUnreachable, match="closed"):
        triton.infer("embedder", SEQUENCES[:1])


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8001", "localhost", "localhost:", "localhost:grpc", "localhost:80010", ":8001"]
)
def test_an_address_that_is_none_is_refused_before_dialling(url: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        Triton(ClientSettings(url=url))


@pytest.fixture
def replicas(new_wire_server: Any) -> Any:
    servers = [new_wire_server(), new_wire_server()]
    yield servers
    for server in servers:
        server.stop()


def test_replicas_take_turns_and_one_that_dies_is_passed_over(kind: str, replicas: Any, computed: Computed) -> None:
    first, second = replicas
    first.delay_s = second.delay_s = 0.05  # so that both are connected to before the last request leaves
    settings = ClientSettings(url=f"{first.url},{second.url}", max_request_tokens=32, num_in_flight=2)
    np.testing.assert_array_equal(call(kind, settings, "infer", "embedder", SEQUENCES), computed("embedder", SEQUENCES))
    halves = len(first.requests), len(second.requests)
    assert min(halves) > 0
    second.stop()
    np.testing.assert_array_equal(call(kind, settings, "infer", "embedder", SEQUENCES), computed("embedder", SEQUENCES))
    assert len(second.requests) == halves[1]


def test_statistics_of_replicas_are_summed_and_one_that_is_silent_is_told(kind: str, replicas: Any) -> None:
    """By turns, two looks at one load would be looks at two servers."""
    settings = ClientSettings(url=",".join(server.url for server in replicas), max_request_tokens=32, timeout_s=2.0)
    call(kind, settings, "infer", "embedder", SEQUENCES)
    num_sent = sum(len(server.requests) for server in replicas)
    for _ in range(2):
        found = call(kind, settings, "statistics", "embedder")
        assert (found.num_requests, found.num_executions, found.queue_ms) == (14, num_sent, 6.0)
    replicas[1].stop()
    with pytest.raises(ServerUnreachable):
        call(kind, settings, "statistics", "embedder")


def test_a_channel_of_grpcs_own_reaches_all_replicas(replicas: Any) -> None:
    """What a load generator sends through; asked until both were, which the second call may be too early for."""

    async def ask() -> None:
        url = ",".join(server.url for server in replicas)
        async with open_channel(ClientSettings(url=url), []) as channel, asyncio.timeout(30):
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not all(server.asked for server in replicas):
                await stub.ModelConfig(service_pb2.ModelConfigRequest(name="skill_embedder"))

    asyncio.run(ask())


def test_replicas_that_run_different_models_are_refused(kind: str, replicas: Any) -> None:
    replicas[1].digests["embedder"] = "9" * 64
    settings = ClientSettings(url=",".join(server.url for server in replicas))
    with pytest.raises(RepositoryError, match=r"999999999999, graph .* and eeeeeeeeeeee"):
        call(kind, settings, "served", "embedder")


@pytest.mark.parametrize("url", ["10.0.0.1:8001,host:8001", "10.0.0.1:8001,[::1]:8001", "10.0.0.1:8001,", "a,b"])
def test_lists_of_replicas_are_addresses_of_one_kind(kind: str, url: str) -> None:
    with pytest.raises(ConfigError, match="of replicas, IP addresses of one kind"):
        call(kind, ClientSettings(url=url), "served", "embedder")
