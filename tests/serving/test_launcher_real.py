# ruff: noqa: S104, S310, S607 - loopback URLs and tools of the test machine
"""The real embedded server on a toy graph: what it answers, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.errors import ConfigError, RepositoryError, ServerError, ServerStartError
from skillserve_serving.embedded import embedded_root, embedded_stub
from skillserve_serving.launcher import Triton, running_server
from skillserve_serving.ownership import SHARED_MEMORY, sweep
from skillserve_serving.supervisor import Event, Limits, Supervisor

TOLERANCE = 1e-5
"""As in test_ragged: float32 sums in different orders."""

MAX_BATCH_SIZE = 64
"""Of the toys, more than a test sends at once."""

PATIENCE_S = 20
"""How long a test waits for something that takes about one second."""


def post(url: str, body: object, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """POST JSON; returns the status and the JSON of the answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), headers or {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            content = response.read()
            return response.status, json.loads(content) if content else {}
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def infer(server: Triton, model: str, ids: Sequence[int], lens: Sequence[int]) -> tuple[int, Any]:
    """Send one packed request; returns the status, and the rows or the error text."""
    tensors = {"input_ids": list(ids), "seq_lens": list(lens)}
    inputs = [
        {"name": name, "shape": [1, len(data)], "datatype": "INT32", "data": data} for name, data in tensors.items()
    ]
    status, answer = post(f"{server.http_url}/v2/models/{model}/infer", {"inputs": inputs})
    if status != 200:
        return status, answer["error"]
    output = answer["outputs"][0]
    return status, np.array(output["data"], np.float32).reshape(output["shape"])


def counts(server: Triton, model: str) -> tuple[int, int]:
    """Requests and executions of a model so far, all that were answered among them.

    Triton answers first and counts afterwards, but executes one batch after the other: once a further request is
    answered, all earlier ones are counted. That one, refused by the backend, fills a batch and is left out.
    """
    ids = {"name": "input_ids", "shape": [MAX_BATCH_SIZE, 1], "datatype": "INT32", "data": [1] * MAX_BATCH_SIZE}
    lens = {**ids, "name": "seq_lens", "data": [2] * MAX_BATCH_SIZE}
    assert post(f"{server.http_url}/v2/models/{model}/infer", {"inputs": [ids, lens]})[0] == 400
    with urllib.request.urlopen(f"{server.http_url}/v2/models/{model}/stats", timeout=10) as response:
        found = json.loads(response.read())["model_stats"][0]["batch_stats"]
    sizes = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in found}
    del sizes[MAX_BATCH_SIZE]
    return sum(size * num for size, num in sizes.items()), sum(sizes.values())


def group_is_alive(group: int) -> bool:
    """Whether a process of the group still runs; a zombie that nobody reaped holds nothing."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True).stdout.splitlines()
    return any(int(row.split()[0]) == group and not row.split()[1].startswith("Z") for row in listed)


def soon(condition: Callable[[], bool]) -> bool:
    """Whether the condition becomes true within the patience of a test."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def regions_of(server: Triton) -> list[str]:
    """Shared-memory regions of a running server."""
    assert server._process is not None
    return [path.name for path in SHARED_MEMORY.glob(f"{server._process.regions}*")]


def regions_of_starter(starter: int) -> list[str]:
    """Shared-memory regions of the servers that a process started."""
    return [path.name for path in SHARED_MEMORY.glob(f"skillserve-*-{starter}-*")]


def test_requests_of_mixed_lengths_are_joined_and_answered_each_with_its_own_rows(server: Triton, toys: Any) -> None:
    rng = np.random.default_rng(3)
    lens = [rng.integers(1, 6, size=rng.integers(1, 4)).tolist() for _ in range(40)]
    work = [(rng.integers(0, 30, size=sum(each)).tolist(), each) for each in lens]
    before = counts(server, "skill_embedder")
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda request: infer(server, "skill_embedder", *request), work))
    for (ids, each), (status, rows) in zip(work, answers, strict=True):
        assert status == 200
        assert rows.shape == (1, len(each), toys.dim)
        np.testing.assert_allclose(rows[0], toys.naive("skill_embedder", ids, each), atol=TOLERANCE)
    requests, executions = np.subtract(counts(server, "skill_embedder"), before)
    assert requests == 40
    assert executions < 20, "requests of different lengths must share executions"


def test_malformed_requests_get_400_and_their_neighbours_their_rows(server: Triton, toys: Any) -> None:
    good = ([1, 2, 3, 4], [3, 1])
    malformed = [([1, 2, 3], [2]), ([1, 99], [2]), ([1] * 10, [14, -4]), ([-1, 2], [2]), ([1, 2], [2, 0])]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda work: infer(server, "skill_embedder", *work), [*malformed, good] * 4))
    for i, (status, rows) in enumerate(answers):
        if i % 6 == 5:
            assert status == 200
            np.testing.assert_allclose(rows[0], toys.naive("skill_embedder", *good), atol=TOLERANCE)
        else:
            assert status == 400
            assert "; wanted " in rows
    assert server.health.probe(server.models[0]).state == "green"


def test_empty_tensors_and_too_many_tokens_are_refused(server: Triton, toys: Any) -> None:
    status, message = infer(server, "skill_reranker", [], [1])
    assert status == 400
    assert "no tokens" in message
    status, message = infer(server, "skill_reranker", [1] * 41, [10, 10, 10, 11])
    assert status == 400
    assert f"at most {toys.max_request_tokens}" in message


@pytest.mark.parametrize("trap", ["crash_id", "nan_id"])
def test_a_failing_graph_is_an_error_of_one_request_and_tells_no_paths(trap: str, server: Triton, toys: Any) -> None:
    work = [([getattr(toys, trap)], [1]), ([5, 6], [1, 1])] * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda request: infer(server, "skill_reranker", *request), work))
    for status, message in answers[::2]:
        assert status == 500
        assert "/" not in message
        assert "the graph" in message
    for status, rows in answers[1::2]:
        assert status == 200
        np.testing.assert_allclose(rows[0], toys.naive("skill_reranker", [5, 6], [1, 1]), atol=TOLERANCE)
    assert server.health.probe(server.models[1]).state == "green"


def test_a_taken_port_is_named_with_its_holder(server: Triton, repository: Path, toys: Any) -> None:
    settings = toys.settings(repository, grpc_port=server.settings.grpc_port)
    with pytest.raises(ServerStartError) as caught:
        Triton(settings).start()
    assert str(server.settings.grpc_port) in caught.value.subject
    assert f"process {server.pid}" in caught.value.got
    assert "--grpc-port" in caught.value.fix


def test_a_setting_that_cannot_be_honoured_is_refused_at_load_by_its_name(tmp_path: Path, toys: Any) -> None:
    extra = 'parameters { key: "gpu_mem_limit" value { string_value: "1" } }'
    toys.write_model(tmp_path / "models", "skill_embedder", extra=extra)
    server = Triton(toys.settings(tmp_path / "models"))
    with pytest.raises(RepositoryError, match=r"parameters\.gpu_mem_limit") as caught:
        server.start()
    assert "skill_embedder" in caught.value.subject
    assert server.pid is None
    assert server.log_path.is_file(), "the log of a failed start is kept"
    shutil.rmtree(server.log_path.parent)


def test_a_misspelt_configuration_is_blamed_on_the_repository(tmp_path: Path, toys: Any) -> None:
    toys.write_model(tmp_path / "models", "skill_embedder", extra="max_batch_siz: 3")
    with pytest.raises(RepositoryError, match="failed to read text proto"):
        Triton(toys.settings(tmp_path / "models", log_file=tmp_path / "log")).start()


def test_a_server_on_ipv6_is_reached_past_any_proxy_of_the_environment(
    tmp_path: Path, toys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton wants such an address in three different spellings, and a proxy cannot reach this machine's loopback."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    toys.write_model(tmp_path / "models", "skill_embedder")
    with running_server(toys.settings(tmp_path / "models", host="::1", log_file=tmp_path / "log")) as server:
        assert server.grpc_address == f"[::1]:{server.settings.grpc_port}"
        assert server.health.probe(server.models[0]).state == "green"


def test_the_start_deadline_ends_the_waiting_with_the_log_and_leaves_nothing(repository: Path, toys: Any) -> None:
    log = repository.parent / "server.log"
    server = Triton(toys.settings(repository, start_deadline_s=0.3, log_file=log))
    with pytest.raises(ServerStartError, match=r"no right answer in 0\.3 s") as caught:
        server.start()
    assert str(log) in caught.value.fix
    assert caught.value.fix.count("\n") > 2, "the log's last lines belong to the error"
    assert server.pid is None


def test_wrong_numbers_are_never_served(repository: Path, toys: Any) -> None:
    probe = repository / "skill_embedder" / "probe.json"
    content = json.loads(probe.read_text())
    content["expected"][1][0] += 0.5
    probe.write_text(json.dumps(content))
    with pytest.raises(ServerError, match=r"answers wrongly: off by 0\.5") as caught:
        Triton(toys.settings(repository, log_file=repository.parent / "log")).start()
    assert "numpy" in caught.value.got


def test_a_padded_model_is_served_and_probed_and_a_foreign_card_is_refused(tmp_path: Path, toys: Any) -> None:
    """Dims [1] reshaped to [] is how Triton is told of one number per request."""
    models = tmp_path / "models"
    toys.write_model(models, "skill_embedder", padded=True)
    toys.write_model(models, "skill_reranker", padded=True)
    card = models / "skill_reranker" / "card.json"
    with running_server(toys.settings(models, log_file=tmp_path / "log")) as server:
        assert [server.health.probe(model).state for model in server.models] == ["green", "green"]
        content = card.read_text()
        card.write_text(content.replace("f" * 64, "0" * 64))
        second = Triton(toys.settings(models, log_file=tmp_path / "log2"))
        with pytest.raises(RepositoryError, match="digest ffffffffffff"):
            second.start()


def test_a_server_that_dies_is_restarted_and_given_up_when_it_keeps_dying(repository: Path, toys: Any) -> None:
    events: list[Event] = []
    with running_server(toys.settings(repository, log_file=repository.parent / "log")) as server:
        supervisor = Supervisor(server, tell=events.append, limits=Limits(restarts=2, backoff_s=0))
        first, leaked = server.pid, regions_of(server)
        assert first is not None
        assert leaked
        os.kill(first, signal.SIGKILL)
        assert server.wait(PATIENCE_S)
        supervisor.check()
        assert not any((SHARED_MEMORY / name).exists() for name in leaked)
        assert [event.kind for event in events] == ["died", "restarted"]
        assert server.pid != first
        assert all(server.health.probe(model).state == "green" for model in server.models)
        (repository / "skill_embedder" / "1" / "model.onnx").write_bytes(b"no graph")
        os.kill(server.pid or 0, signal.SIGKILL)
        assert server.wait(PATIENCE_S)
        with pytest.raises(ServerError, match="2 restarts") as caught:
            supervisor.check()
    assert caught.value.exit_code == 5
    assert soon(lambda: not group_is_alive(first))


def test_a_dying_starter_takes_its_server_along_and_the_next_start_sweeps(repository: Path, toys: Any) -> None:
    settings = toys.settings(repository, log_file=repository.parent / "log")
    program = (
        "import sys, time\n"
        "from skillserve.settings import ServeSettings\n"
        "from skillserve_serving.launcher import Triton\n"
        "server = Triton(ServeSettings.model_validate_json(sys.argv[1]))\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", program, settings.model_dump_json()], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    assert group_is_alive(pid)
    assert regions_of_starter(starter.pid)
    starter.kill()
    starter.wait()
    starter.stdout.close()
    assert soon(lambda: not group_is_alive(pid))
    sweep()
    assert regions_of_starter(starter.pid) == []


def test_a_named_server_without_a_runtime_of_its_own_gets_ours_and_closes_its_controls_in_public(
    tmp_path: Path, repository: Path, toys: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full installation, assembled from the embedded one's parts in the layout of NVIDIA's container."""
    origin = embedded_root()
    root = tmp_path / "site" / "opt" / "tritonserver"
    (root / "bin").mkdir(parents=True)
    shutil.copy2(origin / "bin" / "tritonserver", root / "bin" / "tritonserver")
    shutil.copytree(origin / "backends" / "python", root / "backends" / "python")
    shutil.copy2(embedded_stub(origin), root / "backends" / "python")
    (tmp_path / "site" / "nvidia_pytriton.libs").symlink_to(origin.parent.parent / "nvidia_pytriton.libs")
    settings = toys.settings(
        repository, tritonserver=root / "bin" / "tritonserver", host="0.0.0.0", log_file=tmp_path / "log"
    )
    with running_server(settings) as server:
        assert server.installation.kind == "named"
        assert "WARNING" in capsys.readouterr().err
        assert server.grpc_address.startswith("127.0.0.1:")
        status, _ = post(f"{server.http_url}/v2/repository/models/skill_embedder/unload", {})
        assert status == 403
        server.health.reload("skill_embedder")
        assert server.health.probe(server.models[0]).state == "green"
        group, regions = server.pid or 0, regions_of(server)
    assert regions
    assert not any((SHARED_MEMORY / name).exists() for name in regions)
    assert soon(lambda: not group_is_alive(group))  # a killed stub takes its moment on a busy machine


def test_the_embedded_server_is_never_exposed(repository: Path, toys: Any) -> None:
    with pytest.raises(ConfigError, match="container"):
        Triton(toys.settings(repository, host="0.0.0.0"))


def test_naming_the_embedded_binary_does_not_lift_its_limits(repository: Path, toys: Any) -> None:
    binary = embedded_root() / "bin" / "tritonserver"
    with pytest.raises(ConfigError):
        Triton(toys.settings(repository, host="0.0.0.0", tritonserver=binary))
