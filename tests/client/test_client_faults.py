"""The error map, and what is tried again."""

from __future__ import annotations

import grpc
import pytest

from skillserve.errors import (
    RepositoryError,
    RequestRejected,
    ServerOverloaded,
    ServerUnreachable,
    SkillserveError,
)
from skillserve_client.faults import BY_STATUS, Attempts, translate

LOST = translate("StatusCode.UNAVAILABLE", "failed to connect to all addresses", subject="server")


def test_every_grpc_status_is_mapped() -> None:
    assert set(BY_STATUS) == {code.name for code in grpc.StatusCode}


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_mapped_error_has_its_four_parts(code: grpc.StatusCode) -> None:
    error = translate(str(code), "words", subject="server at x")
    assert type(error) is BY_STATUS[code.name]
    assert all((error.subject, error.got, error.wanted, error.fix))


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", ServerOverloaded),
        ("UNAVAILABLE", "Request timeout expired", ServerOverloaded),
        ("UNAVAILABLE", "This protocol is restricted, expecting header 'x'", RequestRejected),
        ("UNAVAILABLE", "Request for unknown model: 'm' has no available versions", RepositoryError),
        ("UNAVAILABLE", "Socket closed", ServerUnreachable),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", RequestRejected),
        ("RESOURCE_EXHAUSTED", "quota", ServerOverloaded),
    ],
)
def test_words_tell_apart_what_one_code_means(code: str, message: str, kind: type[SkillserveError]) -> None:
    assert type(translate(f"StatusCode.{code}", message, subject="server")) is kind


def test_a_lost_connection_is_tried_again_twice_with_growing_pauses() -> None:
    attempts = Attempts()
    first, second = attempts.pause_before_retry(LOST, 10), attempts.pause_before_retry(LOST, 10)
    assert first is not None
    assert second is not None
    assert 0.05 <= first <= 0.1 <= second <= 0.2
    assert attempts.pause_before_retry(LOST, 10) is None


def test_nothing_is_tried_again_when_the_pause_would_pass_the_deadline() -> None:
    assert Attempts().pause_before_retry(LOST, 0.04) is None


@pytest.mark.parametrize(
    "message", ["Exceeds maximum queue size", "Request timeout expired", "This protocol is restricted", "odd words"]
)
def test_an_answered_unavailable_is_never_tried_again(message: str) -> None:
    error = translate("StatusCode.UNAVAILABLE", message, subject="server")
    assert Attempts().pause_before_retry(error, 10) is None
