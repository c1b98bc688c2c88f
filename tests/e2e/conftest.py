"""A real Triton, started by the real command, serving tiny real graphs: one for all tests of this folder."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from skillserve.cli import main
from skillserve.settings import ClientSettings, ExportSettings
from skillserve_client import Triton
from skillserve_export import export_model


@dataclass
class Server:
    """A running `skillserve serve`."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    repository: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """GRPC address."""
        return str(self.ready["grpc"])


def free_ports(count: int) -> list[int]:
    """Ports that nobody holds at this moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(held.getsockname()[1]) for held in sockets]


@contextmanager
def running(repository: Path, *arguments: str) -> Iterator[Server]:
    """Start the command, wait for its ready line, collect its later events, stop it."""
    http, grpc, metrics = free_ports(3)
    command = [sys.executable, "-m", "skillserve", "serve", "--repository", str(repository), "--json"]
    command += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    server = Server(process, json.loads(line), repository)
    reader = threading.Thread(target=lambda: server.events.extend(map(json.loads, process.stdout or ())), daemon=True)
    drain = threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True)
    reader.start()
    drain.start()
    try:
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)
        reader.join(timeout=10)


@pytest.fixture(scope="session")
def repository(tiny_embedder: Path, tiny_reranker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with a tiny embedder and a tiny reranker, both through the gate."""
    folder = tmp_path_factory.mktemp("model_repository")
    for weights in (tiny_embedder, tiny_reranker):
        export_model(weights, ExportSettings(repository=folder, max_request_tokens=2_048))
    return folder


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """The way to start a server of one's own."""
    return running


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    """The server that tests share; they leave it as they found it.

    Its health is asked for at the start alone: what the server counts are the requests of the tests.
    """
    with running(repository, "--health-interval-s=3600") as running_server:
        yield running_server


@pytest.fixture
def triton(server: Server) -> Iterator[Triton]:
    """A connected client."""
    with Triton(ClientSettings(url=server.url)) as client:
        yield client


@pytest.fixture(scope="session")
def catalogue(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All skills of the sample in one file, as a catalogue is served."""
    path = tmp_path_factory.mktemp("catalogue") / "skills.jsonl"
    parts = [(sample_data / "skills" / f"{split}.jsonl").read_text() for split in ("train", "test")]
    path.write_text("".join(parts))
    return path


@pytest.fixture(scope="session")
def skillserve() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of ours in a process of its own."""

    def run(*arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-m", "skillserve", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )
        assert not check or result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result

    return run


@pytest.fixture(scope="session")
def in_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of ours here, where torch is loaded: a process of its own would load it for longer than it works.

    For commands that need torch; the demo runs them in processes of their own.
    """

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(list(arguments))
        result = subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
        assert not check or code == 0, f"exit code {code}\n{result.stdout}\n{result.stderr}"
        return result

    return run


@pytest.fixture(scope="session")
def bundles(
    server: Server,
    catalogue: Path,
    skillserve: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle of the sample catalogue, built by the real command through the real server."""
    folder = tmp_path_factory.mktemp("bundles")
    skillserve(
        "index", str(catalogue), "--models", str(server.repository), "--bundles", str(folder), "--url", server.url
    )
    return folder
