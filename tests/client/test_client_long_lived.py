"""Clients that stay open while their server changes, hangs, or has other work to do."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from skillserve.errors import BundleError, DeadlineExceeded, ServerUnreachable
from skillserve.settings import ClientSettings
from skillserve_client import AsyncSearcher, AsyncTriton, Searcher, Triton, calls
from skillserve_client.slots import Slots

ONE = [np.arange(5, 9, dtype=np.int32)]
MANY = [np.full(48, 7, np.int32)] * 40
LOST = (grpc.StatusCode.UNAVAILABLE, "Socket closed")


@pytest.fixture(params=["blocking", "asyncio"])
def searches(
    request: pytest.FixtureRequest, bundles: Path, wire_settings: ClientSettings
) -> Iterator[Callable[[], Any]]:
    """A searcher that stays open: each call is one more search."""
    if request.param == "blocking":
        with Searcher.connect(bundles, client=wire_settings) as searcher:
            yield lambda: searcher.search("merge pdf")
        return
    with asyncio.Runner() as runner:
        waiting = runner.run(AsyncSearcher.connect(bundles, client=wire_settings))
        yield lambda: runner.run(waiting.search("merge pdf"))
        runner.run(waiting.close())


def test_another_model_is_noticed_at_the_latest_when_its_description_is_old(
    searches: Callable[[], Any], wire_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert searches().hits[0].skill_id == "pdf"
    wire_server.digests["embedder"] = "9" * 64
    monkeypatch.setattr(calls, "FRESH_S", 0.0)
    with pytest.raises(BundleError, match="9" * 12) as caught:
        searches()
    assert "searcher" in caught.value.fix


@pytest.mark.parametrize("role", ["embedder", "reranker"])
def test_another_model_behind_a_lost_connection_is_noticed_at_once(
    role: str, searches: Callable[[], Any], wire_server: Any
) -> None:
    searches()
    wire_server.digests[role] = "9" * 64
    wire_server.aborts = [LOST]
    with pytest.raises(BundleError, match="9" * 12):
        searches()


def test_a_new_version_of_the_same_model_is_gone_on_with(searches: Callable[[], Any], wire_server: Any) -> None:
    before = searches()
    wire_server.versions = ["11"]
    assert searches().hits == before.hits
    assert wire_server.requests[-1]["version"] == 11


def test_a_description_that_is_fresh_is_not_asked_for_again(searches: Callable[[], Any], wire_server: Any) -> None:
    searches()
    asked = len(wire_server.asked)
    searches()
    assert len(wire_server.asked) == asked


def test_a_server_that_comes_up_later_is_dialled_at_once(new_wire_server: Any) -> None:
    """Long attempts to connect must not mean long pauses between them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Triton(ClientSettings(url=f"127.0.0.1:{port}", timeout_s=5)) as triton:
        with pytest.raises(ServerUnreachable):
            triton.served("embedder")
        server = new_wire_server(port)
        try:
            assert triton.infer("embedder", ONE).shape == (1, 16)
        finally:
            server.stop()


def test_a_connection_may_take_its_time(wire_server: Any) -> None:
    """A relay that is slow to begin stands for a far server."""
    host, port = wire_server.url.split(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pump(source: socket.socket, sink: socket.socket) -> None:
            with suppress(OSError):  # either end may hang up first
                while content := source.recv(65536):
                    sink.sendall(content)

        def relay() -> None:
            near, _ = listener.accept()
            time.sleep(0.5)
            far = socket.create_connection((host, int(port)))
            for ends in ((near, far), (far, near)):
                threading.Thread(target=pump, args=ends, daemon=True).start()

        threading.Thread(target=relay, daemon=True).start()
        with Triton(ClientSettings(url=f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=20)) as triton:
            assert triton.infer("embedder", ONE).shape == (1, 16)


def test_something_that_is_no_grpc_is_told_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                peer, _ = listener.accept()
                with peer:
                    peer.recv(4096)
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        with Triton(ClientSettings(url=url, timeout_s=5)) as triton:
            with pytest.raises(ServerUnreachable, match="not gRPC") as caught:
                triton.served("embedder")
            assert "gRPC address" in caught.value.fix


def bulk_settings(settings: ClientSettings, num_in_flight: int) -> ClientSettings:
    """Every sequence of MANY is a request of its own."""
    return settings.model_copy(update={"num_in_flight": num_in_flight, "max_request_tokens": 48})


def test_calls_of_one_client_share_its_bound(wire_server: Any, wire_settings: ClientSettings) -> None:
    wire_server.delay_s = 0.01
    with Triton(bulk_settings(wire_settings, 2)) as triton:
        threads = [threading.Thread(target=triton.infer, args=("embedder", MANY[:6])) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wire_server.most_at_once == 2

    async def together() -> None:
        async with AsyncTriton(bulk_settings(wire_settings, 2)) as triton:
            await asyncio.gather(*(triton.infer("embedder", MANY[:6]) for _ in range(4)))

    asyncio.run(together())
    assert wire_server.most_at_once == 2


def test_a_search_overtakes_bulk_work(wire_server: Any, wire_settings: ClientSettings) -> None:
    """Two requests, for one request waits in no pool; both are answered long before the bulk work is done."""
    wire_server.delay_s = 0.05
    with Triton(bulk_settings(wire_settings, 1)) as triton:
        bulk = threading.Thread(target=triton.infer, args=("embedder", MANY))
        bulk.start()
        triton.infer("embedder", MANY[:2])
        assert len(wire_server.requests) < len(MANY) // 2
        bulk.join()

    async def together() -> None:
        wire_server.requests.clear()
        async with AsyncTriton(bulk_settings(wire_settings, 1)) as triton:
            work = asyncio.create_task(triton.infer("embedder", MANY))
            await asyncio.sleep(0.1)
            await triton.infer("embedder", MANY[:2])
            assert len(wire_server.requests) < len(MANY) // 2
            await work

    asyncio.run(together())


@pytest.mark.parametrize("num", [1, 2])
def test_waiting_for_room_ends_with_the_deadline(num: int, wire_server: Any, wire_settings: ClientSettings) -> None:
    wire_server.delay_s = 1.0
    with Triton(bulk_settings(wire_settings, 1)) as triton:
        triton.served("embedder")
        busy = threading.Thread(target=triton.infer, args=("embedder", ONE))
        busy.start()
        wire_server.arrived.wait(10)
        with pytest.raises(DeadlineExceeded, match="in flight"):
            triton.infer("embedder", MANY[:num], timeout_s=0.1)
        assert busy.is_alive()
        busy.join()

    async def run() -> None:
        async with AsyncTriton(bulk_settings(wire_settings, 1)) as triton:
            first = asyncio.create_task(triton.infer("embedder", ONE))
            await asyncio.sleep(0.2)
            with pytest.raises(DeadlineExceeded, match="in flight"):
                await triton.infer("embedder", MANY[:num], timeout_s=0.1)
            await first

    asyncio.run(run())


def test_slots_go_to_whoever_waits_longest() -> None:
    slots = Slots(1)
    slots.take(1)
    got = threading.Event()

    def wait() -> None:
        slots.take(10)
        got.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    while not slots._waiting:
        time.sleep(0.001)
    slots.give()
    with pytest.raises(TimeoutError):
        slots.take(0.05)  # given away already, though the waiter may not have woken up yet
    assert got.wait(10)
    slots.give()
    slots.take(0)
    waiter.join()


def test_closing_during_a_call_is_no_cancellation_of_its_caller(
    wire_server: Any, wire_settings: ClientSettings
) -> None:
    wire_server.delay_s = 0.5

    async def run() -> None:
        triton = AsyncTriton(wire_settings)
        call = asyncio.create_task(triton.infer("embedder", ONE))
        await asyncio.to_thread(wire_server.arrived.wait, 10)
        await triton.close()
        with pytest.raises(ServerUnreachable, match="closed"):
            await call

    asyncio.run(run())


def test_a_cancelled_caller_stays_cancelled(wire_server: Any, wire_settings: ClientSettings) -> None:
    wire_server.delay_s = 0.5

    async def run() -> None:
        async with AsyncTriton(wire_settings) as triton:
            call = asyncio.create_task(triton.infer("embedder", ONE))
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(run())
