"""The load generator against a real server: what it sends, what a stall costs, a server that goes away, Ctrl-C.

No figure is asserted that a busy machine could change: whatever is compared with a time is compared with one that
the test itself makes pass.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.cli import main
from skillserve.errors import ServerUnreachable
from skillserve.settings import ClientSettings
from skillserve_bench.load.generator import COMPLETED, INTERRUPTED, SERVER_GONE, Generator
from skillserve_bench.load.histogram import Histogram
from skillserve_bench.load.schedule import ClosedLoop, OpenLoop, Phase
from skillserve_bench.load.target import InferTarget
from skillserve_bench.measurement import Contender, measure
from skillserve_bench.messages import messages, rows
from skillserve_bench.supply import embedder_supply, read_texts
from skillserve_client import Triton

pytestmark = pytest.mark.e2e

WINDOW_S = 0.5
STALL_S = 2.0


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    """Two load processes for all tests."""
    with Generator(num_workers=2) as running:
        yield running


def sequences(num: int) -> list[np.ndarray]:
    """Different token ids that the tiny model reads."""
    rng = np.random.default_rng(5)
    return [rng.integers(5, 40, size=int(length), dtype=np.int32) for length in rng.integers(5, 40, size=num)]


def target_of(url: str) -> tuple[InferTarget, list[bytes]]:
    """The embedder behind an address, and requests for it."""
    with Triton(ClientSettings(url=url)) as triton:
        model = triton.served("embedder")
    return InferTarget(ClientSettings(url=url, timeout_s=20.0), model), messages(
        model, [[each] for each in sequences(400)]
    )


@pytest.fixture
def varied(sample_data: Path, tmp_path: Path) -> Path:
    """The sample with requests that differ early: the tiny model reads twenty tokens, and no request is sent twice.

    Among the sample's own, a load would search long for one that begins otherwise.
    """
    words = sorted(set((sample_data / "queries" / "test.jsonl").read_text().split()))
    rng = np.random.default_rng(7)
    folder = tmp_path / "varied"
    (folder / "queries").mkdir(parents=True)
    for part in ("skills", "qrels"):
        (folder / part).symlink_to((sample_data / part).resolve())
    requests = ({"id": str(i), "query": " ".join(rng.choice(words, size=8))} for i in range(8_000))
    (folder / "queries" / "test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in requests))
    return folder


def prime(generator: Generator, target: InferTarget, requests: list[bytes]) -> None:
    """Wait until all processes have started and are connected."""
    load = ClosedLoop(num_clients=generator.num_workers, seconds=None)
    generator.drive(target, requests[: generator.num_workers], load, window_s=WINDOW_S)


def test_every_scheduled_request_is_sent_once_and_answered_as_the_client_is(
    server: Any, generator: Generator, triton: Triton
) -> None:
    target, requests = target_of(server.url)
    load = OpenLoop.draw([Phase(20, 2)], arrivals="poisson", seed=3)
    num = len(load.offsets)
    run = generator.drive(target, requests[:num], load, window_s=WINDOW_S, keep_answers=True)
    assert (run.ended, run.error) == (COMPLETED, None)
    assert run.num_answered == sum(window.num_scheduled for window in run.windows) == num
    scheduled = np.bincount((load.offsets // WINDOW_S).astype(int), minlength=len(run.windows))
    assert [window.num_scheduled for window in run.windows] == scheduled.tolist()
    np.testing.assert_allclose(
        rows(run.answers, target.model), triton.infer("embedder", sequences(400)[:num]), atol=1e-5
    )
    assert run.cpu_s > 0
    assert 0 < run.busiest <= 1.5
    assert abs(run.clock_step_s) < 1


def test_a_closed_loop_sends_all_it_has_even_with_fewer_clients_than_processes(
    server: Any, generator: Generator
) -> None:
    target, requests = target_of(server.url)
    run = generator.drive(target, requests[:30], ClosedLoop(num_clients=1, seconds=None), window_s=WINDOW_S)
    assert run.num_answered == 30
    assert Histogram.merged(window.lags for window in run.windows).num == 30


def test_a_stall_is_seen_by_every_request_that_should_have_started_meanwhile(server: Any, generator: Generator) -> None:
    """Coordinated omission: a closed loop's one client waits once; an open loop's schedule shows the whole stall."""
    target, requests = target_of(server.url)
    pid = server.ready["pid"]
    rate, seconds = 20.0, 4.5

    def stall() -> None:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(STALL_S)
        os.kill(pid, signal.SIGCONT)

    def slow(load: OpenLoop | ClosedLoop, payloads: list[bytes]) -> int:
        timer = threading.Timer(1.0, stall)
        timer.start()
        run = generator.drive(target, payloads, load, window_s=WINDOW_S)
        timer.join()
        assert run.ended == COMPLETED
        values, counts = Histogram.merged(window.latencies for window in run.windows).counts()
        return int(counts[values >= STALL_S / 2 * 1e6].sum())

    load = OpenLoop.draw([Phase(rate, seconds)], arrivals="constant", seed=1)
    # Those of the first half of the stall wait for at least its second half.
    assert slow(load, requests[: len(load.offsets)]) >= rate * STALL_S / 2 - 1
    # More than a fast server answers in three and a half seconds.
    assert 1 <= slow(ClosedLoop(num_clients=1, seconds=3.5), requests * 20) <= 3


def test_ctrl_c_ends_a_load_and_keeps_what_was_measured(server: Any) -> None:
    target, requests = target_of(server.url)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in a shell's background ignore it
    with Generator(num_workers=1) as generator:
        prime(generator, target, requests)
        load = OpenLoop.draw([Phase(10, 40)], arrivals="constant", seed=1)
        timer = threading.Timer(2.0, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        run = generator.drive(target, requests[: len(load.offsets)], load, window_s=WINDOW_S)
    assert run.ended == INTERRUPTED
    assert generator.interrupted
    assert 0 < run.num_answered < len(load.offsets)


def test_a_server_that_dies_leaves_a_partial_result_that_says_so(
    repository: Path, sample_data: Path, serve: Callable[..., Any], generator: Generator
) -> None:
    with serve(repository) as mortal:
        target, _ = target_of(mortal.url)
        supply = embedder_supply(target.model, repository / "skill_embedder", read_texts(sample_data, seed=1))
        contender = Contender(name="embedder", target=target, supply=supply, server_pid=mortal.ready["pid"])
        load = OpenLoop.draw([Phase(10, 40)], arrivals="constant", seed=1)
        prime(generator, target, supply.take(2))
        requests = supply.take(len(load.offsets))
        timer = threading.Timer(3.0, mortal.process.kill)  # `serve` alone would start its server again
        timer.start()
        found = measure(generator, contender, load, requests, scenario="server", window_s=WINDOW_S, seed=1)
    assert found.ended == SERVER_GONE
    assert found.objections[0] == "partial: the server went away"
    assert found.num_answered > 0
    assert found.failures
    assert found.num_scheduled < len(load.offsets)
    assert found.first_error is not None
    json.dumps(found.to_dict(), allow_nan=False)
    with Generator(num_workers=1) as another, pytest.raises(ServerUnreachable):
        another.drive(target, [b""], ClosedLoop(num_clients=1, seconds=None), window_s=WINDOW_S)


def test_the_command_measures_a_given_server_and_writes_page_and_json(
    server: Any, varied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A busy machine may make requests late, which makes the run invalid and the exit code 1; nothing else may."""
    page, report = tmp_path / "latency.html", tmp_path / "latency.json"
    options = ["--repository", server.repository, "--data", varied, "--url", server.url]
    small = ["--length", "smoke", "--levels", "embedder,search", "--scenarios", "index,single,overload"]
    more = ["--num-clients", 4, "--num-workers", 1, "--out", page, "--out", report, "--json"]
    code = main(["bench", "latency", *map(str, [*options, *small, *more])])
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(report.read_text())
    objections = found["figures"]["objections"]
    assert [objection for objection in objections if "invalid: requests started" not in objection] == []
    assert code == (1 if objections else 0)
    assert found["figures"]["index"]["num_skills"] == 108
    for level in ("embedder", "search"):
        results = found["figures"]["levels"][level]
        assert results["problem"] is None
        assert set(results["measurements"]) == {"single", "saturation", "overload 1.5x", "overload 2x"}
        single = results["measurements"]["single"]
        assert single["num_answered"] > 0
        assert single["server"]["embedder"]["mean_batch"] >= 1
        assert single["latency_ms"]["p50"]["value"] <= single["greatest_ms"] * 1.001
        searched = [each["cores"]["search"] for each in results["measurements"].values()]
        assert all(searched) if level == "search" else searched == [None] * 4
    assert "reranker" in found["figures"]["levels"]["search"]["measurements"]["single"]["server"]
    assert "data:image/svg+xml" in page.read_text()
    assert main(["bench", "compare", str(report), str(report)]) in (0, 2)  # 2: all of it invalid


def test_a_server_that_is_not_there_is_exit_5_and_an_empty_request_file_exit_2(
    server: Any, sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "latency", "--repository", str(server.repository), "--length", "smoke", "--json"]
    assert main([*command, "--data", str(sample_data), "--url", "127.0.0.1:1"]) == 5
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries" / "test.jsonl").write_text("")
    levels = ["--levels", "embedder", "--scenarios", "single"]
    assert main([*command, "--data", str(tmp_path), "--url", server.url, *levels]) == 2
    assert "no requests" in capsys.readouterr().out
