"""The one door to Ray: workers in processes of their own, on this machine or on many.

Nothing is left to Ray that it would do without bound: a dead worker stays dead, and its call fails.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from skillserve.errors import ConfigError, MissingExtraError, ServerUnreachable
from skillserve.machine import num_cores
from skillserve_client.batch.crew import WorkerDied

__all__ = ["Cluster"]

_MOST_CAUSE_CHARACTERS = 200
_KNOCK_S = 10.0


class Cluster:
    """Ray for the length of a `with` block: one that runs at `address`, or one on this machine, which ends with it."""

    def __init__(self, *, address: str | None, num_workers: int | None, worker_cores: int) -> None:
        """Nothing is started yet; raises MissingExtraError without Ray."""
        self._address, self._worker_cores = address, worker_cores
        self.num_workers = num_workers or 0
        """0: as many as there are cores for, which is known when the block begins."""
        if address is None and "ray" not in sys.modules:
            # Ports of a Ray of our own are open to the network, and whoever may call it runs code: only who knows this
            # word may. Ray reads it when it is imported.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        try:
            import ray
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "engine `ray`",
                got=f"no package `{error.name}`",
                wanted="the ray extra",
                fix="Install it: pip install 'skillserve[ray]'",
            ) from error
        self._ray: Any = ray

    def __enter__(self) -> Self:
        """Raises ServerUnreachable, and ConfigError for workers that all cores together could not hold."""
        own: dict[str, Any] = {"address": self._address}
        if self._address is None:
            num_workers = self.num_workers or max(1, num_cores() // self._worker_cores)
            own = {"address": "local", "num_cpus": num_workers * self._worker_cores, "include_dashboard": False}
        # Ray prints news of its machines on stdout, which belongs to results.
        self._ray._private.worker.print_to_stdstream = _to_stderr  # noqa: SLF001 - there is no public way
        try:
            self._knock()
            self._ray.init(**own, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # what Ray raises here has no class of its own
            self._ray.shutdown()
            raise ServerUnreachable(
                f"Ray at {self._address or 'this machine'}",
                got=" ".join(str(error).split()) or type(error).__name__,
                wanted="a running cluster that this machine is a node of" if self._address else "a Ray that starts",
                fix="Start it: ray start --head, or join it: ray start --address HOST:6379; then --ray-address auto",
            ) from error
        num_there = int(self._ray.cluster_resources().get("CPU", 0))
        self.num_workers = self.num_workers or num_there // self._worker_cores
        if not 0 < self.num_workers * self._worker_cores <= num_there:
            self._ray.shutdown()
            # Ray would wait for the missing cores for ever, and say so on a page of its own.
            raise ConfigError(
                f"Ray at {self._address}",
                got=f"{max(1, self.num_workers)} workers of {self._worker_cores} cores, and a cluster of {num_there}",
                wanted="workers that it has cores for",
                fix="Name fewer: --num-workers, --worker-cores; or add nodes to the cluster.",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of Ray; workers that were hired end with it."""
        self._ray.shutdown()

    def share(self, thing: object) -> Any:  # noqa: ANN401 - Ray's references have no usable types
        """The same thing for many calls, sent once to each machine."""
        return self._ray.put(thing)

    def hire(self, kind: type, *arguments: object) -> Any:  # noqa: ANN401 - see above
        """A worker: an object of this kind in a process of its own, as soon as there are cores for it."""
        made = self._ray.remote(kind).options(num_cpus=self._worker_cores, max_restarts=0, max_task_retries=0)
        return made.remote(*arguments)

    def dismiss(self, worker: Any) -> None:  # noqa: ANN401 - see above
        """End a worker, dead or alive."""
        self._ray.kill(worker)

    def call(self, worker: Any, method: str, *arguments: object) -> Any:  # noqa: ANN401 - see above
        """Ask a worker; it answers its calls one by one, in order. Returns the call."""
        return getattr(worker, method).remote(*arguments)

    def ended(self, calls: Sequence[Any], *, timeout_s: float) -> Sequence[Any]:
        """Those of the calls that have come to an end, as soon as there is one; none when the time is over."""
        ready, _ = self._ray.wait(list(calls), num_returns=1, timeout=timeout_s)
        if ready:  # others may have, too
            ready, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)
        return list(ready)

    def answer(self, call: Any) -> Any:  # noqa: ANN401 - see above
        """What an ended call gave; raises what it raised, or WorkerDied."""
        try:
            return self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(_cause(error)) from error

    def num_free_cores(self) -> int:
        """Cores that nobody holds now."""
        return int(self._ray.available_resources().get("CPU", 0))

    def _knock(self) -> None:
        """Ray tries for minutes to reach an address where nobody is; OSError after seconds."""
        host, _, port = (self._address or "").removeprefix("ray://").rpartition(":")
        if host and port.isdecimal():
            socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _to_stderr(data: Mapping[str, Any], *_: object, **__: object) -> None:
    for line in data["lines"]:
        print(line.splitlines()[0] if line else "", file=sys.stderr)


def _cause(error: Exception) -> str:
    """Ray's account of a death is a page; its heart is a line."""
    text = " ".join(str(error).split())
    found = re.search(r"Worker exit type: .*?(?= Some common causes|$)", text)
    words = found.group() if found else text
    return words if len(words) <= _MOST_CAUSE_CHARACTERS else words[:_MOST_CAUSE_CHARACTERS] + " …"
