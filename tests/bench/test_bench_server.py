"""What can be known of a server before it is measured."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from skillserve_bench.server import is_name_of_several


@pytest.mark.parametrize(
    ("addresses", "several"),
    [
        ([(socket.AF_INET, "10.0.0.1"), (socket.AF_INET, "10.0.0.2")], True),
        ([(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], False),  # one server, an address of either kind
        ([(socket.AF_INET, "10.0.0.1"), (socket.AF_INET, "10.0.0.1")], False),
    ],
)
def test_a_name_of_several_servers_is_told_from_a_name_of_one(
    monkeypatch: pytest.MonkeyPatch, addresses: list[tuple[int, str]], *, several: bool
) -> None:
    def resolved(*_: object) -> list[Any]:
        return [(family, socket.SOCK_STREAM, 6, "", (address, 8001)) for family, address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    assert is_name_of_several("replicas.example:8001") is several
    assert not is_name_of_several("10.0.0.1:8001,10.0.0.2:8001")  # each of a list is asked by itself


def test_a_name_that_nobody_knows_is_left_to_whoever_dials_it() -> None:
    assert not is_name_of_several("no-such-host.invalid:8001")
