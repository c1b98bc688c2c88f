"""Runs one Triton on a model repository: starts it, proves that it answers, and leaves nothing behind.

with running_server(settings.serve) as server:
    print(server.grpc_address)
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from skillserve.console import talk
from skillserve.errors import ConfigError, RepositoryError, ServerError, ServerStartError
from skillserve.machine import num_gpus
from skillserve.settings import ServeSettings
from skillserve.tensors import DIGEST_PARAMETER, MODEL_NAMES
from skillserve_serving import guard
from skillserve_serving.addresses import (
    bracketed,
    check_ports,
    connect_address,
    http_bind_address,
    is_loopback,
    resolve,
)
from skillserve_serving.health import CONTROL_HEADER, Finding, Health
from skillserve_serving.installation import Installation, find_installation
from skillserve_serving.ownership import owned_name, remove_regions, sweep
from skillserve_serving.profile import tuned
from skillserve_serving.repository import ServedModel, read_model, read_repository
from skillserve_serving.serverlog import ServerLog

__all__ = ["Triton", "running_server"]

STOP_GRACE_S = 10
"""How long a server may finish the requests in flight before it is killed."""
_POLL_S = 0.05
_PROBES_AT_START = 3
"""A model that is loaded and fails this often in a row will not get better by waiting."""
_TUNED = "repository"
"""Folder of the models with other configurations than their own."""
_CLOSED_TO_OTHERS = "model-repository,shared-memory,trace,logging"


@dataclass(slots=True, kw_only=True)
class _Process:
    """A running server process with what belongs to it."""

    popen: subprocess.Popen[bytes]
    pidfd: int
    """Readable once the process is dead; unlike `wait` it leaves the pid, and so the group, ours until reaped."""
    regions: str
    """Prefix of its shared-memory regions."""
    log: ServerLog


class Triton:
    """One server on one repository. `start` returns when every model answers its probe with the right numbers.

    To be started from a thread that lives on: the kernel kills the server together with its starting thread.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.models: tuple[ServedModel, ...] = read_repository(
            settings.repository, max_graph_gib=settings.max_graph_gib
        )
        self.installation: Installation = find_installation(settings.tritonserver)
        # Our own backend computes on the CPU, whatever there is.
        found = tuned(settings, self.models, gpus=num_gpus() if self.installation.stub is None else 0)
        self.tuning, self.told = found.tuning, found.told
        self.version = ""
        """Of the running server, as `2.51.0`."""
        self._address = resolve(settings.host)
        _check_exposure(self._address, self.installation)
        _check_embedder(settings.repository, self.models)
        self._control_key = secrets.token_hex(16)
        with _room_needed():
            self._folder = Path(tempfile.gettempdir()) / owned_name()
        self._process: _Process | None = None
        host = bracketed(connect_address(self._address))
        self.grpc_address = f"{host}:{settings.grpc_port}"
        self.http_url = f"http://{host}:{settings.http_port}"
        self.metrics_url = f"http://{host}:{settings.metrics_port}/metrics"
        self.health = Health(self.http_url, control_key=self._control_key)

    @property
    def log_path(self) -> Path:
        """Where the server writes its log."""
        return self.settings.log_file or self._folder / "tritonserver.log"

    @property
    def pid(self) -> int | None:
        """Process id of the server, None if it is not running."""
        return self._process.popen.pid if self._process is not None else None

    def start(self) -> None:
        """Read the repository, start the server on it and wait until all models answer.

        Raises ServerStartError, RepositoryError if a model's files are at fault, ServerError for wrong numbers.
        """
        if self._process is not None:
            raise RuntimeError("this server is running already")
        settings = self.settings
        # Since the last start, models may have been exported anew.
        self.models = read_repository(settings.repository, max_graph_gib=settings.max_graph_gib)
        ports = {"http": settings.http_port, "grpc": settings.grpc_port, "metrics": settings.metrics_port}
        check_ports(self._address, ports)
        try:
            with _room_needed():
                sweep()
                self._process = self._spawn()
            self._wait_until_right(self._process)
        except BaseException:
            self.stop(keep_log=True, grace_s=0)  # nobody was served yet, and what does not start may not stop either
            raise

    def reload(self, name: str) -> Finding:
        """Read a model's files again, for it may have been exported anew, load it from them and probe it.

        Raises RepositoryError or CardError for the files, ServerStartError where they find no room, ServerError for
        the server, ServerUnreachable if the server itself does not answer.
        """
        fresh = read_model(self.settings.repository / name, max_graph_gib=self.settings.max_graph_gib)
        with _room_needed():
            self._lay_out([fresh])
        self.models = tuple(fresh if model.name == name else model for model in self.models)
        self.health.reload(name)
        self._check_digest(fresh)
        return self.health.probe(fresh)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the server to die, at most so long; returns whether it is dead."""
        if self._process is None:
            return True
        return bool(select.select([self._process.pidfd], [], [], timeout_s)[0])

    def stop(self, *, keep_log: bool = False, grace_s: float = STOP_GRACE_S) -> None:
        """Stop the server and its stubs, remove their shared memory and files; harmless if nothing runs.

        Requests in flight are finished for up to `grace_s`; then, or with a server that hangs, all is killed.
        """
        process, self._process = self._process, None
        if process is not None:
            if grace_s > 0:
                process.popen.terminate()
                select.select([process.pidfd], [], [], grace_s)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.popen.pid, signal.SIGKILL)
            process.popen.wait()
            os.close(process.pidfd)
            remove_regions(process.regions)
        for folder in ("backends", _TUNED):
            shutil.rmtree(self._folder / folder, ignore_errors=True)
        if not (keep_log and self.log_path.parent == self._folder and self.log_path.exists()):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _spawn(self) -> _Process:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(self._folder / "backends", ignore_errors=True)
        shutil.rmtree(self._folder / _TUNED, ignore_errors=True)
        backends, environment = self.installation.prepare(self._folder)
        self._lay_out(self.models)
        regions = owned_name()
        command = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), str(self.installation.binary)]
        with self._open_log() as output:
            log = ServerLog(self.log_path)
            popen = subprocess.Popen(  # noqa: S603, RUF100
                [*command, *self._arguments(backends, regions)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return _Process(popen=popen, pidfd=os.pidfd_open(popen.pid), regions=regions, log=log)

    def _lay_out(self, models: Iterable[ServedModel]) -> None:
        """Where something is tuned, the server reads these models from a folder of ours."""
        if self.tuning.changes:
            from skillserve_serving.tuning import lay_out_model  # Triton's message is needed for nothing else

            for model in models:
                lay_out_model(model, self._folder / _TUNED / model.name, self.tuning)

    @property
    def _served_repository(self) -> Path:
        return self._folder / _TUNED if self.tuning.changes else self.settings.repository.resolve()

    def _open_log(self) -> BinaryIO:
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            return self.log_path.open("ab")
        except OSError as error:
            if self.settings.log_file is None:
                raise
            raise ConfigError(
                "setting --log-file",
                got=str(error),
                wanted="a file that can be written",
                fix="Name another one, or leave it out for a temporary one.",
            ) from error

    def _arguments(self, backends: Path, regions: str) -> list[str]:
        settings = self.settings
        arguments = [
            f"--model-repository={self._served_repository}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={regions}",
            "--model-control-mode=explicit",
            *(f"--load-model={model.name}" for model in self.models),
            "--disable-auto-complete-config",  # ours are complete, and each completion costs a stub of its own
            f"--exit-timeout-secs={STOP_GRACE_S // 2}",
            f"--http-address={http_bind_address(self._address)}",
            f"--http-port={settings.http_port}",
            f"--grpc-address={bracketed(self._address)}",
            f"--grpc-port={settings.grpc_port}",
            f"--metrics-address={http_bind_address(self._address)}",
            f"--metrics-port={settings.metrics_port}",
        ]
        if self.installation.stub is not None:
            arguments.append("--allow-gpu-metrics=false")  # our backend uses none
        if not is_loopback(self._address):
            arguments += [
                f"--http-restricted-api={_CLOSED_TO_OTHERS}:{CONTROL_HEADER}={self._control_key}",
                f"--grpc-restricted-protocol={_CLOSED_TO_OTHERS}:{CONTROL_HEADER}={self._control_key}",
            ]
        return arguments

    def _wait_until_right(self, process: _Process) -> None:
        deadline = time.monotonic() + self.settings.start_deadline_s
        waiting = list(self.models)
        failures = 0
        last = "the models are still loading"
        while waiting:
            self._raise_if_doomed(process, dead=self.wait(_POLL_S))
            if time.monotonic() > deadline:
                raise self._start_error(process, f"no right answer in {self.settings.start_deadline_s:g} s; {last}")
            if not self.health.ready(waiting[0].name):
                continue
            finding = self.health.probe(waiting[0])
            last = f"{finding.model}: {finding.detail}"
            if finding.state == "green":
                self._check_digest(waiting.pop(0))
                failures = 0
            elif finding.state == "wrong":
                raise self._wrong_numbers(finding)
            elif finding.state == "failing":
                failures += 1
                if failures == _PROBES_AT_START:
                    raise self._start_error(process, f"model `{finding.model}` fails: {finding.detail}")
        self.version = self.health.server_version()

    def _raise_if_doomed(self, process: _Process, *, dead: bool) -> None:
        """A fatal line in the log ends the waiting: with a broken stub the server itself would load for ever."""
        failure = process.log.failure()
        if failure is None:
            if dead:
                raise self._start_error(process, "the server ended by itself")
            return
        if failure.blames_repository:
            raise RepositoryError(
                f"model `{failure.model}`",
                got=failure.cause,
                wanted="a model that the server can load",
                fix=f"Export it again: skillserve export. The server's log: {self.log_path}",
            )
        model = f"model `{failure.model}`: " if failure.model else ""
        raise self._start_error(process, f"{model}{failure.cause}")

    def _check_digest(self, model: ServedModel) -> None:
        served = self.health.parameters(model.name).get(DIGEST_PARAMETER, "none")
        if served != model.card.digest:
            raise RepositoryError(
                f"model folder `{model.folder}`",
                got=f"a configuration with digest {served[:12]}",
                wanted=f"{model.card.short_digest}, as its card says",
                fix="Its files come from different exports: skillserve export WEIGHTS",
            )

    def _wrong_numbers(self, finding: Finding) -> ServerError:
        return ServerError(
            f"model `{finding.model}`",
            got=finding.detail,
            wanted="the numbers of its probe",
            fix="Export the model again, and check the environment: pip install 'skillserve[serving]'",
        )

    def _start_error(self, process: _Process, got: str) -> ServerStartError:
        return ServerStartError(
            f"Triton on `{self.settings.repository}`",
            got=got,
            wanted="a server whose models answer",
            fix=f"Read its log {self.log_path}; the last lines:\n{process.log.tail()}",
        )


@contextlib.contextmanager
def running_server(settings: ServeSettings) -> Iterator[Triton]:
    """Start a server, yield it when its models answer, always stop it; its log is kept if the block fails."""
    server = Triton(settings)
    server.start()
    try:
        yield server
    except Exception:
        server.stop(keep_log=True)
        raise
    except BaseException:
        server.stop()
        raise
    server.stop()


@contextlib.contextmanager
def _room_needed() -> Iterator[None]:
    """What the system refuses while a server is laid out and spawned is an error of its start."""
    try:
        yield
    except OSError as error:
        raise ServerStartError(
            "what the server needs of this machine",
            got=str(error),
            wanted="room for a few MiB in the temporary folder, and for one more process",
            fix="Free some, or name another folder for temporary files: TMPDIR=… skillserve serve",
        ) from error


def _check_embedder(repository: Path, models: tuple[ServedModel, ...]) -> None:
    """A server for rerankers alone is legitimate; one that lacks its embedder by mistake finds nothing."""
    if all(model.name != MODEL_NAMES["embedder"] for model in models):
        talk(
            f"WARNING: model repository `{repository}` has no `{MODEL_NAMES['embedder']}`: "
            "skillserve index and search need one."
        )


def _check_exposure(address: str, installation: Installation) -> None:
    """Exposure is a decision: refused for the embedded server, said aloud for any other."""
    if installation.embedded:
        talk(
            "Using the embedded Triton from PyPI: release 24.10, for development only. "
            "It predates the security fixes of 2025 and 2026 and is bound to this machine."
        )
    if is_loopback(address):
        return
    if installation.embedded:
        raise ConfigError(
            "setting --host",
            got=f"{address} for the embedded Triton, which has known remote holes",
            wanted="a loopback address",
            fix="Serve other machines with NVIDIA's container (26.07 or newer) or name its binary with --tritonserver.",
        )
    talk(
        f"WARNING: the server listens on {address} without authentication or encryption: "
        "whoever reaches it can use it. Its control interfaces are closed with a key; "
        "the rest is for your network to guard."
    )
