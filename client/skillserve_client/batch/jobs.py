"""What a job is: how it reads a row, what of it is done ahead, and what it makes of the models' numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from skillserve.tensors import Role
from skillserve_client.batch.engine import Engine, Tokens
from skillserve_client.batch.inputs import R, Sources
from skillserve_client.batch.receipts import JobName

__all__ = ["Job", "Outcome", "Refused"]

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that gets no result."""

    reason: str


Outcome = Mapping[str, Any] | Refused
"""The columns of a result, without its position, or why there is none."""


class Job(Protocol[R, P]):
    """One kind of batch scoring."""

    @property
    def name(self) -> JobName:
        """Of the command, and in every manifest."""
        ...

    @property
    def sources(self) -> Sources[R]:
        """What is read."""
        ...

    @property
    def digests(self) -> Mapping[Role, str]:
        """Of the models that take part."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """Everything else that a result depends on, as JSON has it."""
        ...

    @property
    def dim(self) -> int | None:
        """Of vectors in the result, if it has any."""
        ...

    @property
    def shard_rows(self) -> int:
        """Of a shard, where nobody says."""
        ...

    def prepare(self, records: Sequence[R]) -> P:
        """Tokenise: runs ahead of the models, in another thread."""
        ...

    def score(self, prepared: P, engine: Engine, advance: Tokens) -> list[Outcome]:
        """An outcome for each record, in order; raises ServerError when the server is at fault."""
        ...
