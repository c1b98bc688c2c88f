"""A model of a repository in this process, for bulk work that needs no server: its configuration, graph and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillserve.errors import RequestRejected, ServerError
from skillserve_serving.ragged import Graph, Refusal, Rows, Wire, answer
from skillserve_serving.session import open_graph
from skillserve_serving.spec import ModelSpec

__all__ = ["InProcessModel", "open_model"]


@dataclass(frozen=True, slots=True)
class InProcessModel:
    """A `skillserve.scoring.LocalModel`: what the backend does with one request, without Triton around it."""

    spec: ModelSpec
    graph: Graph

    def answer(self, request: Wire) -> Rows:
        """The output tensor of one request; RequestRejected if it is malformed, ServerError if the graph fails on it.

        The graph fails on it, too, where it gives a number that is not finite.
        """
        (rows,) = answer(self.spec, self.graph, [request])
        if isinstance(rows, Refusal):
            kind = RequestRejected if rows.malformed else ServerError
            cause = f" ({type(rows.cause).__name__})" if rows.cause else ""
            raise kind(
                f"model `{self.spec.name}` in this process",
                got=rows.message + cause,
                wanted="a request that the graph answers",
                fix="Check that tokenizer and model belong together, then run: skillserve verify",
            ) from rows.cause
        return rows


def open_model(version_folder: Path, config: Mapping[str, Any]) -> InProcessModel:
    """Open the graph in a version's folder; raises RepositoryError if it cannot be run here as it is configured."""
    spec = ModelSpec.from_config(config)
    return InProcessModel(spec, open_graph(spec, version_folder))
