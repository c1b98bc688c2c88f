"""One map from gRPC's status codes to skillserve's errors, and the rule that decides what is tried again.

Triton uses UNAVAILABLE for three different things: a lost connection (trying again is right), a shed request
(trying again makes it worse) and a closed door (trying again is useless). Only its words tell them apart.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from skillserve.errors import (
    DeadlineExceeded,
    RepositoryError,
    RequestRejected,
    ServerError,
    ServerOverloaded,
    ServerUnreachable,
    SkillserveError,
)

__all__ = ["BY_STATUS", "Attempts", "translate"]

BY_STATUS: dict[str, type[SkillserveError]] = {
    "OK": ServerError,  # an error that claims success
    "CANCELLED": ServerError,
    "UNKNOWN": ServerError,
    "INVALID_ARGUMENT": RequestRejected,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "NOT_FOUND": RepositoryError,
    "ALREADY_EXISTS": ServerError,
    "PERMISSION_DENIED": RequestRejected,
    "RESOURCE_EXHAUSTED": ServerOverloaded,
    "FAILED_PRECONDITION": RequestRejected,
    "ABORTED": ServerError,
    "OUT_OF_RANGE": RequestRejected,
    "UNIMPLEMENTED": ServerError,
    "INTERNAL": ServerError,
    "UNAVAILABLE": ServerUnreachable,
    "DATA_LOSS": ServerError,
    "UNAUTHENTICATED": RequestRejected,
}

_SHED = ("exceeds maximum queue size", "request timeout expired")
_CLOSED = ("protocol is restricted",)
_NO_MODEL = ("unknown model", "is not found", "no available versions", "model is not ready", "not ready")
_TOO_LARGE = ("larger than max",)
_LOST = (
    "failed to connect",
    "connection refused",
    "connection reset",
    "connection timed out",
    "socket closed",
    "broken pipe",
    "goaway",
    "keepalive watchdog",
    "transport closed",
    "connection dropped",
    "endpoint closing",
)

_NO_TRUST = ("certificate", "handshake", "ssl_error", "verification check")
"""What is heard when a connection is not believed, or one side speaks TLS and the other does not."""

_NO_GRPC = ("socket closed", "settings frame")
"""What is heard when something answers that does not speak gRPC, an HTTP port for example."""

_WANTED: dict[type[SkillserveError], tuple[str, str]] = {
    ServerOverloaded: (
        "room in its queue",
        "Send fewer requests at once (--num-in-flight) or serve more replicas.",
    ),
    ServerUnreachable: ("an answering server", "Start one: skillserve serve"),
    RequestRejected: ("a request that the server accepts", "Check that client and server are of one version."),
    DeadlineExceeded: ("an answer in time", "Allow more time (--timeout-s) or send smaller requests."),
    RepositoryError: (
        "a loaded model",
        "Export it and restart the server: skillserve export WEIGHTS, then skillserve serve",
    ),
    ServerError: ("an answer", "Read the server's log, then check the model: skillserve verify"),
}


def translate(status: str | None, message: str | None, *, subject: str) -> SkillserveError:
    """The error for a failed call; `status` is tritonclient's (`StatusCode.UNAVAILABLE`), None for local faults."""
    text = message or "no message"
    lowered = text.lower()
    code = "INVALID_ARGUMENT" if status is None else status.removeprefix("StatusCode.")
    kind = BY_STATUS.get(code, ServerError)
    if code == "UNAVAILABLE":
        if any(words in lowered for words in _SHED):
            kind = ServerOverloaded
        elif any(words in lowered for words in _CLOSED):
            kind = RequestRejected
        elif any(words in lowered for words in _NO_MODEL):
            kind = RepositoryError
    elif code == "RESOURCE_EXHAUSTED" and any(words in lowered for words in _TOO_LARGE):
        kind = RequestRejected
    wanted, fix = _WANTED[kind]
    if kind is ServerUnreachable and any(words in lowered for words in _NO_GRPC):
        wanted = "a gRPC server; something answers there and hangs up"
        fix = (
            "If it runs, it is not gRPC that listens there: `skillserve serve` prints its gRPC address (--url). "
            "Or it wants an encrypted connection (--tls), or to know who asks (--tls-certificate)."
        )
    if kind is ServerUnreachable and any(words in lowered for words in _NO_TRUST):
        wanted = "a server whose certificate is believed, and that believes ours"
        fix = (
            "Name the authority that signed it (--tls-ca), the name it carries (--tls-server-name), or leave out --tls."
        )
    return kind(subject, got=f"{code}: {text}", wanted=wanted, fix=fix)


def _is_lost_connection(error: SkillserveError) -> bool:
    return isinstance(error, ServerUnreachable) and any(words in error.got.lower() for words in _LOST)


@dataclass(slots=True)
class Attempts:
    """How often one request was sent; inference changes nothing on the server, so sending it again is safe."""

    most_retries: int = 2
    first_pause_s: float = 0.1
    num_retries: int = 0
    asked_again: bool = False

    def pause_before_retry(self, error: SkillserveError, remaining_s: float) -> float | None:
        """Seconds to wait before sending again, with full jitter; None if the error stands.

        A lost connection is tried again if the pause ends before the deadline. An absent model is asked for again
        once, since the server may have gone on to another version of it.
        """
        if isinstance(error, RepositoryError) and not self.asked_again:
            self.asked_again = True
            return 0.0
        if self.num_retries >= self.most_retries or not _is_lost_connection(error):
            return None
        ceiling = self.first_pause_s * 2**self.num_retries
        pause = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - jitter, not cryptography
        if pause >= remaining_s:
            return None
        self.num_retries += 1
        return pause
