"""Every error that skillserve raises on purpose.

    SkillserveError                  exit 1
    ├── UsageError                   exit 2   the caller asked for something that cannot be
    │   ├── ConfigError                       a setting is unknown or out of range
    │   ├── CatalogueError                    a skill or request file has faulty lines
    │   └── QueryError                        a request text that cannot be searched
    ├── MissingExtraError            exit 3   a room is used whose packages are not installed
    ├── ContractError                exit 4   two artefacts do not belong together, or one is damaged
    │   ├── CardError                         model card absent, invalid or not of these weights
    │   ├── BundleError                       bundle damaged, incomplete, or of another model
    │   ├── RepositoryError                   model repository incomplete or not servable
    │   ├── ParityError                       an exported graph does not reproduce its weights
    │   └── OutputError                       an output folder is another job's, in use, or takes no more
    └── ServerError                  exit 5   the inference server
        ├── ServerStartError                  did not start, or not in time
        ├── ServerUnreachable                 cannot be reached, or went away
        ├── ServerOverloaded                  shed the request; retrying at once makes it worse
        ├── RequestRejected                   refused the request as malformed
        └── DeadlineExceeded                  did not answer before the deadline

An error says four things: its subject, what was got, what was wanted, and the next command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "BundleError",
    "CardError",
    "CatalogueError",
    "ConfigError",
    "ContractError",
    "DeadlineExceeded",
    "MissingExtraError",
    "OutputError",
    "ParityError",
    "QueryError",
    "RepositoryError",
    "RequestRejected",
    "ServerError",
    "ServerOverloaded",
    "ServerStartError",
    "ServerUnreachable",
    "SkillserveError",
    "UsageError",
]


class SkillserveError(Exception):
    """Base of the tree: carries the four parts of its message and the exit code of the command line."""

    exit_code = 1

    def __init__(self, subject: str, *, got: str, wanted: str, fix: str) -> None:
        self.subject = subject
        self.got = got
        self.wanted = wanted
        self.fix = fix
        self.findings: Mapping[str, Any] = {}
        """What a command found out before it failed; `--json` prints it with the error, as one document."""
        super().__init__(f"{subject}: got {got}; wanted {wanted}. {fix}")

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and worker processes raise these.
        return (_rebuild, (type(self), self.subject, self.got, self.wanted, self.fix), {"findings": self.findings})

    def to_dict(self) -> dict[str, Any]:
        """The error as `--json` prints it, behind what was found out before."""
        return {
            **self.findings,
            "error": type(self).__name__,
            "subject": self.subject,
            "got": self.got,
            "wanted": self.wanted,
            "fix": self.fix,
            "exit_code": self.exit_code,
        }


def _rebuild(kind: type[SkillserveError], subject: str, got: str, wanted: str, fix: str) -> SkillserveError:
    return kind(subject, got=got, wanted=wanted, fix=fix)


class UsageError(SkillserveError):
    """The caller asked for something that cannot be."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is unknown, malformed or out of range."""


class CatalogueError(UsageError):
    """A file of skills or requests has faulty lines; `got` lists all of them with their line numbers."""


class QueryError(UsageError):
    """A request text that cannot be searched, such as an empty one."""


class MissingExtraError(SkillserveError):
    """A room is used whose packages are not installed."""

    exit_code = 3


class ContractError(SkillserveError):
    """Two artefacts do not belong together, or one of them is damaged."""

    exit_code = 4


class CardError(ContractError):
    """A model card is absent, invalid, or not the card of the weights beside it."""


class BundleError(ContractError):
    """A bundle is damaged or incomplete, or was built with another model."""


class RepositoryError(ContractError):
    """A model repository is incomplete, or asks for something that the server cannot honour."""


class ParityError(ContractError):
    """An exported graph does not reproduce the model that it was exported from."""


class OutputError(ContractError):
    """An output folder holds the results of another job or version, is in use, is damaged, or takes no more."""


class ServerError(SkillserveError):
    """The inference server failed the caller."""

    exit_code = 5


class ServerStartError(ServerError):
    """The server did not start, or was not ready before its deadline."""


class ServerUnreachable(ServerError):
    """The server cannot be reached, or went away during a call."""


class ServerOverloaded(ServerError):
    """The server shed the request; an immediate retry makes it worse."""


class RequestRejected(ServerError):
    """The server refused the request as malformed."""


class DeadlineExceeded(ServerError):
    """The server did not answer before the caller's deadline."""
