"""The files of an encrypted connection, read before anything is dialled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skillserve.errors import ConfigError
from skillserve.settings import ClientSettings

__all__ = ["Pem", "read_pem"]

_MARK = b"-----BEGIN "


@dataclass(frozen=True, slots=True, kw_only=True)
class Pem:
    """Contents of PEM files; None where none was named."""

    authorities: bytes | None = None
    """Whose signature on the server's certificate is believed; None: gRPC's own list."""
    certificate: bytes | None = None
    """The client's own, for servers that ask for one."""
    key: bytes | None = None


def read_pem(settings: ClientSettings) -> Pem | None:
    """What the settings name; None without TLS. Raises ConfigError for a file that is no PEM."""
    if not settings.tls:
        return None
    return Pem(
        authorities=_read("tls_ca", settings.tls_ca),
        certificate=_read("tls_certificate", settings.tls_certificate),
        key=_read("tls_key", settings.tls_key),
    )


def _read(name: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unfit(name, path, error.strerror or str(error)) from error
    if _MARK not in content:
        raise _unfit(name, path, "no PEM")
    return content


def _unfit(name: str, path: Path, got: str) -> ConfigError:
    return ConfigError(
        f"setting client.{name}, `{path}`",
        got=got,
        wanted="a readable PEM file, which begins with -----BEGIN",
        fix=f"Name another one: --{name.replace('_', '-')} FILE",
    )
