"""The served line as a scorer (`skillserve.scoring`): a gate's sequences go over the wire that searches use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

from skillserve.card import ModelCard
from skillserve.errors import RepositoryError
from skillserve.settings import ClientSettings
from skillserve.tensors import Ids, Precision
from skillserve_client.triton import Triton
from skillserve_client.wire import Floats, Progress, ServedModel

__all__ = ["ServerScorer", "open_scorer"]

_PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, slots=True)
class ServerScorer:
    """One model of a server that was seen to be the one that is meant."""

    triton: Triton
    served: ServedModel
    precision: Precision
    address: str
    server: str
    """Name and version of the server, as it says."""

    @property
    def name(self) -> str:
        """The model and where it is."""
        return f"`{self.served.name}` on the server at {self.address}"

    @property
    def facts(self) -> Mapping[str, str]:
        """What it is, and on what it runs."""
        return {
            "server": self.server,
            "address": self.address,
            "model_version": self.served.version,
            "digest": self.served.digest,
            "graph_digest": self.served.graph_digest,
            "layout": self.served.layout,
        }

    def score(self, sequences: Sequence[Ids], *, progress: Progress | None = None) -> Floats:
        """Rows in the order of the sequences; raises RepositoryError if the server changed the model meanwhile."""
        served = self.served
        rows = self.triton.infer(served.role, sequences, progress=progress, digest=served.digest)
        now = self.triton.served(served.role)
        if now != served:
            raise RepositoryError(
                self.name,
                got=f"version {now.version}, graph {now.graph_digest[:12]}, at the end of the run",
                wanted=f"version {served.version}, graph {served.graph_digest[:12]}, as at its start",
                fix="The figures would be of two models. Run the command again.",
            )
        return rows


@contextmanager
def open_scorer(card: ModelCard, settings: ClientSettings) -> Iterator[ServerScorer]:
    """Connect and compare digests, before anything long; raises RepositoryError for another model, ServerError."""
    with Triton(settings) as triton:
        served = triton.served(card.role)
        subject = f"server at {settings.url}"
        if served.digest != card.digest:
            raise RepositoryError(
                subject,
                got=f"{card.role} {served.digest[:12]}, version {served.version}",
                wanted=f"{card.role} {card.short_digest}, the weights that are verified",
                fix="Name the weights that it serves, or serve these: skillserve export WEIGHTS, then skillserve serve",
            )
        precision = next((known for known in _PRECISIONS if known == served.precision), None)
        if precision is None:
            raise RepositoryError(
                subject,
                got=f"the precision {served.precision!r} in its configuration",
                wanted=f"one of {', '.join(_PRECISIONS)}, which says how far it may rank from its weights",
                fix="Export the model again, and serve that: skillserve export WEIGHTS",
            )
        yield ServerScorer(triton, served, precision, settings.url, triton.server())
