"""The models of a repository in this process, as an `Inference`: what the server computes, without the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skillserve.scoring import LocalModel, open_local
from skillserve.tensors import MODEL_NAMES, Ids, Role
from skillserve_client.configuration import as_backend_reads_it, read_configuration, served_version
from skillserve_client.wire import Floats, Progress, ServedModel, collect, cut, encode, require_digest

__all__ = ["DirectInference", "ModelsOfRepository"]


class ModelsOfRepository:
    """What the configurations of a repository say of its models; nothing is loaded."""

    def __init__(self, repository: Path, roles: Sequence[Role]) -> None:
        """Read them; raises RepositoryError."""
        self._served = {role: _described(repository, role)[0] for role in roles}

    def served(self, role: Role) -> ServedModel:
        """Describe the model of a role."""
        return self._served[role]


class DirectInference:
    """Runs graphs with ONNX Runtime as their configuration asks; requests are those that would go over the wire.

    One call runs at a time: a graph uses the cores that its configuration gives it, or `num_threads`.
    """

    def __init__(
        self, repository: Path, roles: Sequence[Role], *, max_request_tokens: int, num_threads: int | None = None
    ) -> None:
        """Open the graphs of these roles; raises RepositoryError, and MissingExtraError without ONNX Runtime."""
        self._max_request_tokens = max_request_tokens
        self._subject = f"model repository `{repository}`"
        self._models: dict[Role, tuple[ServedModel, LocalModel]] = {}
        for role in roles:
            model, config = _described(repository, role)
            read = as_backend_reads_it(config)
            if num_threads is not None:
                read["parameters"]["intra_op_thread_count"] = {"string_value": str(num_threads)}
            self._models[role] = model, open_local(repository / MODEL_NAMES[role] / model.version, read)

    def served(self, role: Role) -> ServedModel:
        """Describe the model of a role."""
        return self._models[role][0]

    def infer(
        self,
        role: Role,
        sequences: Sequence[Ids],
        *,
        timeout_s: float | None = None,  # noqa: ARG002 - a run of a graph cannot be ended early
        progress: Progress | None = None,
        digest: str | None = None,
    ) -> Floats:
        """As `Inference.infer`; raises RequestRejected or ServerError."""
        model, graph = self._models[role]
        require_digest(model, digest, subject=self._subject)
        if not sequences:
            return model.no_rows()
        parts = []
        for chosen in cut(sequences, model, self._max_request_tokens):
            part = sequences[chosen]
            parts.append(collect(graph.answer(encode(part, model)), model.num_rows(part), model))
            if progress:
                progress(len(part))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _described(repository: Path, role: Role) -> tuple[ServedModel, Any]:
    """What a model's configuration says of it, and the configuration."""
    config = read_configuration(repository / MODEL_NAMES[role])
    model = ServedModel.from_config(
        role,
        version=served_version(config),
        parameters={key: value.string_value for key, value in config.parameters.items()},
        output_dims=config.output[0].dims,
        max_batch_size=config.max_batch_size,
    )
    return model, config
