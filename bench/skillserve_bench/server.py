"""A server to be measured: one that runs already, or one started here through `skillserve serve` and stopped again."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillserve import errors
from skillserve.console import talk
from skillserve.recommendation import Tuning
from skillserve.settings import ClientSettings
from skillserve.settings.client import TLS_FIELDS
from skillserve_bench.child import first_event, stop, terminable
from skillserve_client import Triton

__all__ = ["Server", "given_server", "is_name_of_several", "started_server"]

_START_S = 150
"""Longer than `serve` itself waits, so that its own error arrives."""
_SERVE = (sys.executable, "-m", "skillserve", "serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a server answers, and what it is."""

    client: ClientSettings
    """How it is reached: its address, and whether the connection is encrypted."""
    version: str
    """As `Triton 2.51.0 (embedded)`; with what it was tuned by, where nobody asked for that here."""
    pid: int | None
    """Its process; None for a server that was not started here."""

    @property
    def url(self) -> str:
        """Its gRPC address."""
        return self.client.url

    def reached(self, client: ClientSettings | None = None) -> ClientSettings:
        """A client's settings, with this server's address and encryption."""
        ours = {name: getattr(self.client, name) for name in ("url", *TLS_FIELDS)}
        return (client or ClientSettings()).model_copy(update=ours)


def is_name_of_several(url: str) -> bool:
    """Whether a DNS name stands for several servers: one may then answer what another is asked."""
    if "," in url:
        return False  # a list, of which each is asked
    host, _, port = url.rpartition(":")
    with suppress(OSError):
        found = {(family, address[0]) for family, *_, address in socket.getaddrinfo(host.strip("[]"), int(port))}
        # One server may have an address of either kind.
        return max(Counter(family for family, _ in found).values()) > 1
    return False  # whoever dials it will say so


def given_server(settings: ClientSettings) -> Server:
    """A server that runs already; raises ServerUnreachable (exit 5) if none answers there."""
    with Triton(settings) as triton:
        triton.served("embedder")
        version = triton.server().split()[-1]
    return Server(client=settings, version=f"Triton {version} (given)", pid=None)


@contextmanager
def started_server(repository: Path, *, tuning: Tuning | None = None) -> Iterator[Server]:
    """Serve a repository on free loopback ports while the block runs. Raises what `skillserve serve` reports."""
    with ExitStack() as stack:
        stack.enter_context(terminable())
        http, grpc, metrics = _free_ports(3)
        ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
        flags = tuning.flags.split() if tuning else []
        told = stack.enter_context(tempfile.TemporaryFile())
        process = stack.enter_context(
            # A session of its own: Ctrl-C reaches this process alone, which then stops the server in order.
            subprocess.Popen(  # noqa: S603, RUF100
                [*_SERVE, "--repository", str(repository), *ports, *flags, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=told,
                start_new_session=True,
            )
        )
        stack.callback(stop, process)
        talk(f"starting a server for {repository}")
        ready = first_event(process, within_s=_START_S)
        if ready.get("event") != "ready":
            told.seek(0)
            raise _failure(repository, ready, told.read().decode(errors="replace"))
        kind, version = ready["server"]["kind"], ready["server"]["version"]
        if unasked := _unasked(ready, tuning):
            talk(f"NOTE: this server is not as its models were exported, nor as this command asks: {unasked}.")
            kind = f"{kind}, set by a configuration file or the environment: {unasked}"
        yield Server(client=ClientSettings(url=ready["grpc"]), version=f"Triton {version} ({kind})", pid=ready["pid"])


def _unasked(ready: dict[str, Any], tuning: Tuning | None) -> str:
    """What a server that is ready was tuned by besides what it was started for, as it says itself; empty if nothing.

    It reads skillserve.toml and `SKILLSERVE_SERVE_*` like any other, and whoever reads a report sees neither.
    """
    asked = tuning.changes if tuning else {}
    found = {"profile": ready["profile"], **ready["tuning"]}
    return ", ".join(f"{name} {value}" for name, value in found.items() if value not in {None, asked.get(name)})


def _free_ports(num: int) -> list[int]:
    """Ports that were free a moment ago, all different because they are held together."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(num)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _failure(repository: Path, event: dict[str, Any], told: str) -> errors.SkillserveError:
    """The error that `serve` printed, as itself; else one with the last thing it said."""
    kind = getattr(errors, str(event.get("error")), None)
    if isinstance(kind, type) and issubclass(kind, errors.SkillserveError):
        return kind(event["subject"], got=event["got"], wanted=event["wanted"], fix=event["fix"])
    last = told.strip().splitlines()[-1:] or ["nothing"]
    return errors.ServerStartError(
        f"server for `{repository}`",
        got=f"no ready line; it last said: {last[0]}",
        wanted="a server that is ready",
        fix=f"Start it by hand to see why: skillserve serve --repository {repository}",
    )
