"""Which address a server binds, who may reach it there, and who holds its ports if they are taken."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from pathlib import Path

from skillserve.errors import ConfigError, ServerStartError

__all__ = ["bracketed", "check_ports", "connect_address", "http_bind_address", "is_loopback", "resolve"]

_LISTEN = "0A"


def resolve(host: str) -> str:
    """The numeric address of `host`; raises ConfigError if it has none.

    Triton's HTTP server takes numbers only: with a name it says that it has started and is not to be reached.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(
            "setting --host",
            got=f"`{host}`: {error.strerror or error}",
            wanted="an address of this machine",
            fix="Use 127.0.0.1, or correct the name.",
        ) from error
    # IPv4 first: `localhost` has both, and clients try 127.0.0.1.
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `address`."""
    return ipaddress.ip_address(address).is_loopback


def connect_address(address: str) -> str:
    """The address under which this machine reaches a server bound to `address`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - recognised, not bound


def bracketed(address: str) -> str:
    """`address` as it stands before a port: `[::1]`."""
    return f"[{address}]" if ":" in address else address


def http_bind_address(address: str) -> str:
    """`address` as Triton's HTTP and metrics servers want it; gRPC wants it bracketed."""
    return f"ipv6:{address}" if ":" in address else address


def check_ports(address: str, ports: Mapping[str, int]) -> None:
    """Raise ServerStartError for the first of the named ports that is taken, ConfigError if two are the same."""
    if len(set(ports.values())) < len(ports):
        raise ConfigError(
            "ports of the server",
            got=", ".join(f"{name} {port}" for name, port in ports.items()),
            wanted="a different one for each",
            fix="Change one of them: " + ", ".join(f"--{name}-port" for name in ports),
        )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for name, port in ports.items():
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do: a port in TIME_WAIT is free, one that is listened on is not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                raise ServerStartError(
                    f"{name} port {port} on {address}",
                    got=f"{error.strerror or error}; {_holder(port)}",
                    wanted="a free port",
                    fix=f"Stop the holder, or choose another port with --{name}-port.",
                ) from error


def _holder(port: int) -> str:
    """Who listens on a port, as far as this user may see."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening_inodes(Path("/proc/net") / table, port)}
    if not inodes:
        return "nobody listens on it, so it may be reserved or the address not be this machine's"
    links = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _holds(process, links):
            arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            return f"held by process {process.name} ({' '.join(arguments[:3]).strip()[:80]})"
    return "held by a process of another user"


def _listening_inodes(table: Path, port: int) -> list[str]:
    try:
        rows = [line.split() for line in table.read_text(encoding="ascii").splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port]


def _holds(process: Path, links: set[str]) -> bool:
    try:
        return any(str(descriptor.readlink()) in links for descriptor in (process / "fd").iterdir())
    except OSError:
        return False
