"""Scorers: whatever turns token sequences into rows, in process or behind a socket, behind one protocol.

A gate compares two of them and need not know what they are. Rooms that may not import each other meet here: the one
that talks to a server is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from skillserve.card import ModelCard
from skillserve.lazy import load_target
from skillserve.settings import ClientSettings
from skillserve.tensors import Ids, Precision

__all__ = ["LocalModel", "Progress", "Rows", "Scorer", "open_local", "open_server"]

Rows = npt.NDArray[np.float32]
"""Embeddings `[n, D]` or scores `[n]`."""

Progress = Callable[[int], object]
"""Called with the number of sequences that were just scored."""

_SERVER = "skillserve_client.scorer:open_scorer"
_LOCAL = "skillserve_serving.inprocess:open_model"


class Scorer(Protocol):
    """A model that runs somewhere."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def precision(self) -> Precision:
        """In which numbers it computes."""
        ...

    @property
    def facts(self) -> Mapping[str, str]:
        """What a report says of it: digests, versions, address."""
        ...

    def score(self, sequences: Sequence[Ids], *, progress: Progress | None = None) -> Rows:
        """Rows in the order of the sequences."""
        ...


def open_server(card: ModelCard, settings: ClientSettings) -> AbstractContextManager[Scorer]:
    """The model of this card on a running server.

    Raises MissingExtraError without the client, RepositoryError if the server runs another model, and ServerError.
    """
    opener = load_target(_SERVER, extra="client", subject=f"server at {settings.url}")
    return cast("Callable[[ModelCard, ClientSettings], AbstractContextManager[Scorer]]", opener)(card, settings)


class LocalModel(Protocol):
    """A served model without its server: the same configuration, graph and answers, in this process."""

    def answer(self, request: Mapping[str, npt.NDArray[np.int32]]) -> Rows:
        """The output tensor of one request, as both go over the wire; raises RequestRejected or ServerError."""
        ...


def open_local(version_folder: Path, config: Mapping[str, Any]) -> LocalModel:
    """The model in a version's folder of a repository, with its configuration as Triton hands it to a backend.

    Raises MissingExtraError without the room that runs graphs, and RepositoryError for a model that it cannot run.
    """
    opener = load_target(_LOCAL, extra="serving", subject=f"model folder `{version_folder}`")
    return cast("Callable[[Path, Mapping[str, Any]], LocalModel]", opener)(version_folder, config)
