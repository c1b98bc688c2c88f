"""What every call of a client needs to know, without a socket: its address, its time, and who was there last."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from skillserve.errors import ConfigError, DeadlineExceeded, ServerUnreachable
from skillserve.settings import ClientSettings
from skillserve.tensors import Role
from skillserve_client.wire import ServedModel

__all__ = ["FRESH_S", "Calls"]

FRESH_S = 5.0
"""Age at which a model's description is asked for again. A server needs about that long to come back with other
models, and two small calls in five seconds cost nothing."""

_LAST_PORT = 65_535


class Calls:
    """Shared by the blocking and the asyncio client."""

    def __init__(self, settings: ClientSettings) -> None:
        host, _, port = settings.url.rpartition(":")
        if not host or "://" in settings.url or not port.isdecimal() or not 0 < int(port) <= _LAST_PORT:
            raise ConfigError(
                "setting client.url",
                got=repr(settings.url),
                wanted="host:port of the server's gRPC port, without a scheme",
                fix="For example: --url 127.0.0.1:8001",
            )
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
