"""A real Triton whose gRPC is encrypted and asks for certificates: everybody who asks reaches it or says why not."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.cli import main
from skillserve.config import load_settings
from skillserve.errors import ConfigError, ServerUnreachable
from skillserve.settings import ClientSettings, ServeSettings
from skillserve_bench.load.target import InferTarget
from skillserve_bench.messages import messages, rows
from skillserve_client import AsyncTriton
from skillserve_client import Triton as Client
from skillserve_serving import launcher
from skillserve_serving.commandline import server_arguments
from skillserve_serving.launcher import Triton

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH to make certificates with"),
]
NAME = "skillserve.test"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A self-signed certificate and its key."""

    certificate: Path
    key: Path


def self_signed(folder: Path, name: str) -> Pair:
    """One that holds for a day, for a name alone and for no address."""
    pair = Pair(certificate=folder / f"{name}.pem", key=folder / f"{name}.key")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    command = ["openssl", "req", "-x509", *curve, *names, "-keyout", str(pair.key), "-out", str(pair.certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return pair


def with_certificates(ours: Pair, clients: Path) -> Callable[..., list[str]]:
    """The arguments of a server with Triton's own flags for TLS, to which the supervisor has none."""

    def arguments(*given: Any, **named: Any) -> list[str]:
        return [
            *server_arguments(*given, **named),
            "--grpc-use-ssl-mutual=1",
            f"--grpc-server-cert={ours.certificate}",
            f"--grpc-server-key={ours.key}",
            f"--grpc-root-cert={clients}",
        ]

    return arguments


@pytest.fixture(scope="module")
def encrypted(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientSettings]:
    """How to reach such a server."""
    folder = tmp_path_factory.mktemp("certificates")
    ours, theirs = self_signed(folder, NAME), self_signed(folder, "client")
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        http, grpc, metrics = (each.getsockname()[1] for each in sockets)
    server = Triton(ServeSettings(repository=repository, http_port=http, grpc_port=grpc, metrics_port=metrics))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launcher, "server_arguments", with_certificates(ours, theirs.certificate))
            server.start()  # its health is asked over HTTP as ever
        yield ClientSettings(
            url=server.grpc_address,
            tls=True,
            tls_ca=ours.certificate,
            tls_certificate=theirs.certificate,
            tls_key=theirs.key,
            tls_server_name=NAME,
            timeout_s=20,
        )
    finally:
        server.stop()


def sequences() -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    """Token ids that the tiny model reads."""
    return [np.arange(5, 5 + length, dtype=np.int32) for length in (4, 9, 17)]


def test_clients_and_load_processes_get_the_answers_of_a_plain_connection(
    encrypted: ClientSettings, triton: Client
) -> None:
    plain = triton.infer("embedder", sequences())
    with Client(encrypted) as client:
        np.testing.assert_allclose(client.infer("embedder", sequences()), plain, atol=1e-6)
        model = client.served("embedder")

    async def asked() -> Any:
        async with AsyncTriton(encrypted) as client:
            return await client.infer("embedder", sequences())

    async def sent() -> Any:
        async with InferTarget(encrypted, model).open() as send:
            return rows([await send(payload) for payload in messages(model, [sequences()])], model)

    for way in (asked, sent):
        np.testing.assert_allclose(asyncio.run(way()), plain, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tls_ca": None}, "--tls-ca"),
        ({"tls_server_name": "another.test"}, "--tls-server-name"),
        ({"tls_certificate": None, "tls_key": None}, "--tls-certificate"),
        ({"tls": False}, "--tls"),
    ],
)
def test_who_is_not_believed_is_unreachable_and_the_error_names_the_option(
    encrypted: ClientSettings, changes: dict[str, object], said: str
) -> None:
    with (
        Client(encrypted.model_copy(update={**changes, "timeout_s": 20.0})) as client,
        pytest.raises(ServerUnreachable, match=said),
    ):
        client.served("embedder")


def test_latency_is_measured_over_an_encrypted_connection(
    encrypted: ClientSettings, repository: Path, sample_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {
        f"--{name.replace('_', '-')}": value
        for name, value in encrypted.model_dump().items()
        if name.startswith("tls_")
    }
    words = [str(word) for flag in flags.items() for word in flag]
    command = ["bench", "latency", "--repository", str(repository), "--data", str(sample_data), "--json"]
    small = ["--length", "smoke", "--levels", "search", "--scenarios", "single", "--num-workers", "1"]
    code = main([*command, *small, "--url", encrypted.url, "--tls", *words])
    found = json.loads(capsys.readouterr().out)
    objections = found["figures"]["objections"]
    assert [each for each in objections if "invalid: requests started" not in each] == []
    assert code == (1 if objections else 0)
    single = found["figures"]["levels"]["search"]["measurements"]["single"]
    assert single["num_answered"] > 0
    assert single["failures"] == {}
    assert "(given)" in found["server"]


def test_options_that_would_be_dropped_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.pem"
    path.write_text("no certificate")
    with pytest.raises(ConfigError, match="tls_ca without tls"):
        load_settings(flags={"client.tls_ca": path}, environ={})
    with pytest.raises(ConfigError, match="together only"):
        load_settings(flags={"client.tls": True, "client.tls_certificate": path}, environ={})
    with pytest.raises(ConfigError, match="no PEM"):
        Client(ClientSettings(tls=True, tls_ca=path))
    with pytest.raises(ConfigError, match="No such file"):
        Client(ClientSettings(tls=True, tls_ca=tmp_path / "nowhere.pem"))
