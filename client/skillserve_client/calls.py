"""What every call of a client needs to know, without a socket: its address, its time, and who was there last."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from skillserve.errors import ConfigError, DeadlineExceeded, RepositoryError, ServerUnreachable
from skillserve.settings import ClientSettings
from skillserve.tensors import Role
from skillserve_client.wire import ServedModel

__all__ = ["FRESH_S", "Calls"]

FRESH_S = 5.0
"""Age at which a model's description is asked for again. A server needs about that long to come back with other
models, and two small calls in five seconds cost nothing."""

_LAST_PORT = 65_535


def _family(address: str) -> str | None:
    """`ipv4`, `ipv6` or `name`; None for what is no address."""
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdecimal() or not 0 < int(port) <= _LAST_PORT:
        return None
    with suppress(ValueError):
        return f"ipv{ip_address(host.strip('[]')).version}"
    return "name"


class Calls:
    """Shared by the blocking and the asyncio client."""

    def __init__(self, settings: ClientSettings) -> None:
        addresses = settings.url.split(",")
        families = {_family(address) for address in addresses}
        if None in families or (len(addresses) > 1 and not families < {"ipv4", "ipv6"}):
            raise ConfigError(
                "setting client.url",
                got=repr(settings.url),
                wanted="host:port of the server's gRPC port, without a scheme; of replicas, IP addresses of one kind",
                fix="For example: --url 127.0.0.1:8001, or --url 10.0.0.1:8001,10.0.0.2:8001",
            )
        kind = min(filter(None, families))
        self.targets = (settings.url,) if len(addresses) == 1 else (f"{kind}:{settings.url}", *addresses)
        """What channels are opened to: one that calls go through, and one for each replica to ask what it runs."""
        self.several = len(addresses) > 1 or families == {"name"}
        """There may be replicas; a name may stand for any number of them."""
        self.settings = settings
        self.subject = f"server at {settings.url}"
        self._models: dict[Role, tuple[ServedModel, float]] = {}

    def known(self, role: Role) -> ServedModel | None:
        """What the server said of a model, if that was just now and its connection has held since."""
        model, asked = self._models.get(role, (None, 0.0))
        return model if time.monotonic() - asked < FRESH_S else None

    def described(
        self,
        role: Role,
        config: Any,  # noqa: ANN401 -- protobuf's, like the next
        metadata: Any,  # noqa: ANN401
    ) -> ServedModel:
        """Read the configuration and metadata messages of a model, and remember it."""
        model = ServedModel.from_config(
            role,
            version=max(metadata.versions, key=int, default=""),
            parameters={key: value.string_value for key, value in config.parameters.items()},
            output_dims=config.output[0].dims,
            max_batch_size=config.max_batch_size,
        )
        self._models[role] = (model, time.monotonic())
        return model

    def agreed(self, role: Role, found: Sequence[ServedModel], failed: Sequence[Exception]) -> ServedModel:
        """The model of a role on all replicas that answered; raises what failed if none did.

        RepositoryError if they run different ones, for their rows would be mixed.
        """
        if not found:
            raise failed[0]
        kinds = {(model.digest, model.graph_digest, model.version) for model in found}
        if len(kinds) > 1:
            self.forget()
            raise RepositoryError(
                f"{role} on the replicas at {self.settings.url}",
                got=" and ".join(
                    f"{digest[:12]}, graph {graph[:12]}, version {v}" for digest, graph, v in sorted(kinds)
                ),
                wanted="one model on all of them",
                fix="Serve one repository on all of them, or name those that do: --url",
            )
        return found[0]

    def forget(self) -> None:
        """Ask before the next request: whoever answers it may run other models, or other versions of them."""
        self._models.clear()

    def closed(self, got: str) -> ServerUnreachable:
        """The error for a call of a client that was closed."""
        return ServerUnreachable(
            self.subject, got=got, wanted="an open connection", fix="Connect again: this client was closed."
        )

    def full(self) -> DeadlineExceeded:
        """The error for a request that found no room beside our own others."""
        return DeadlineExceeded(
            self.subject,
            got=f"{self.settings.num_in_flight} requests of this client in flight until the time was over",
            wanted="room for one more",
            fix="Allow more time (--timeout-s), or more requests at once (--num-in-flight).",
        )

    def remaining(self, deadline: float) -> float:
        """Seconds until the deadline (a monotonic moment); raises DeadlineExceeded when there are none."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                self.subject,
                got="no time left to send the request",
                wanted="an answer in time",
                fix="Allow more time (--timeout-s).",
            )
        return left

    def moment(self, timeout_s: float | None, *, num_beside: int = 1) -> float:
        """The deadline of a call that starts now, beside others of ours that the server may answer before it."""
        return time.monotonic() + (self.settings.timeout_s * num_beside if timeout_s is None else timeout_s)

    def num_beside(self, slices: Sequence[slice]) -> int:
        """Requests of one bulk call that are in flight together."""
        return min(self.settings.num_in_flight, len(slices))
