"""Runs one Triton on a model repository: starts it, proves that it answers, and leaves nothing behind.

with running_server(settings.serve) as server:
    print(server.grpc_address)
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from skillserve.errors import ConfigError
from skillserve.machine import num_gpus
from skillserve.settings import ServeSettings
from skillserve_serving.addresses import bracketed, check_ports, connect_address, resolve
from skillserve_serving.checks import check_embedder, check_exposure
from skillserve_serving.commandline import STOP_GRACE_S, server_arguments
from skillserve_serving.health import Finding, Health
from skillserve_serving.installation import Installation, find_installation
from skillserve_serving.ownership import owned_name, sweep
from skillserve_serving.process import ServerProcess, room_needed
from skillserve_serving.profile import tuned
from skillserve_serving.proof import Proof, check_digest
from skillserve_serving.repository import ServedModel, read_model, read_repository

__all__ = ["Triton", "running_server"]

_TUNED = "repository"
"""Folder of the models with other configurations than their own."""


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
        check_exposure(self._address, self.installation)
        check_embedder(settings.repository, self.models)
        self._control_key = secrets.token_hex(16)
        with room_needed():
            self._folder = Path(tempfile.gettempdir()) / owned_name()
        self._process: ServerProcess | None = None
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
            with room_needed():
                sweep()
                self._process = self._spawn()
            proof = Proof(process=self._process, health=self.health, repository=settings.repository)
            proof.wait(self.models, deadline_s=settings.start_deadline_s)
            self.version = self.health.server_version()
        except BaseException:
            self.stop(keep_log=True, grace_s=0)  # nobody was served yet, and what does not start may not stop either
            raise

    def reload(self, name: str) -> Finding:
        """Read a model's files again, for it may have been exported anew, load it from them and probe it.

        Raises RepositoryError or CardError for the files, ServerStartError where they find no room, ServerError for
        the server, ServerUnreachable if the server itself does not answer.
        """
        fresh = read_model(self.settings.repository / name, max_graph_gib=self.settings.max_graph_gib)
        with room_needed():
            self._lay_out([fresh])
        self.models = tuple(fresh if model.name == name else model for model in self.models)
        self.health.reload(name)
        check_digest(self.health, fresh)
        return self.health.probe(fresh)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the server to die, at most so long; returns whether it is dead."""
        return self._process is None or self._process.wait(timeout_s)

    def stop(self, *, keep_log: bool = False, grace_s: float = STOP_GRACE_S) -> None:
        """Stop the server and its stubs, remove their shared memory and files; harmless if nothing runs.

        Requests in flight are finished for up to `grace_s`; then, or with a server that hangs, all is killed.
        """
        process, self._process = self._process, None
        if process is not None:
            process.stop(grace_s)
        for folder in ("backends", _TUNED):
            shutil.rmtree(self._folder / folder, ignore_errors=True)
        if not (keep_log and self.log_path.parent == self._folder and self.log_path.exists()):
            shutil.rmtree(self._folder, ignore_errors=True)

    def _spawn(self) -> ServerProcess:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(self._folder / "backends", ignore_errors=True)
        shutil.rmtree(self._folder / _TUNED, ignore_errors=True)
        backends, environment = self.installation.prepare(self._folder)
        self._lay_out(self.models)
        regions = owned_name()
        arguments = server_arguments(
            self.settings,
            address=self._address,
            repository=self._served_repository,
            backends=backends,
            models=[model.name for model in self.models],
            regions=regions,
            control_key=self._control_key,
            on_cpu=self.installation.stub is not None,  # our backend computes there
        )
        command = [str(self.installation.binary), *arguments]
        with self._open_log() as output:
            return ServerProcess.spawned(
                command, environment=environment, regions=regions, output=output, log=self.log_path
            )

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
