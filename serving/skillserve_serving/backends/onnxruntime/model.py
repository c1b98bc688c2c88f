# ruff: noqa: INP001 - Triton loads this file by its path; the folder is no package
"""Triton Python-based backend `onnxruntime`: serves the configurations of the C++ backend of the same name.

Runs inside Triton's stub process. All thinking is done in `skillserve_serving.ragged`; here requests become
arrays and answers become responses.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from skillserve.errors import ServerStartError
from skillserve_serving.ragged import Refusal, Rows, answer
from skillserve_serving.session import open_graph
from skillserve_serving.spec import ModelSpec

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """One model instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the configuration, load the graph; an exception here is the server's load error."""
        if int(np.__version__.split(".", 1)[0]) >= 2:
            raise ServerStartError(
                "Triton's Python stub",
                got=f"numpy {np.__version__}, under which it hands over wrong numbers in silence",
                wanted="numpy below 2",
                fix="Install it: pip install 'skillserve[serving]'",
            )
        self._spec = ModelSpec.from_config(json.loads(args["model_config"]))
        self._graph = open_graph(self._spec, Path(args["model_repository"]) / args["model_version"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer a batch; a faulty request gets an error of its own, and its neighbours their rows."""
        try:
            wires = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
            return [self._response(rows) for rows in answer(self._spec, self._graph, wires)]
        except Exception as error:  # noqa: BLE001 - an escaping exception would tell clients the server's paths
            refusal = Refusal("the backend failed; the server's log says why", error, malformed=False)
            return [self._response(refusal) for _ in requests]

    def _response(self, rows: Rows | Refusal) -> Any:  # noqa: ANN401 - the stub's types exist only inside the stub
        if not isinstance(rows, Refusal):
            return pb.InferenceResponse([pb.Tensor(self._spec.output, rows)])
        if rows.cause is not None:
            pb.Logger.log_error(f"{self._spec.name}: {type(rows.cause).__name__}: {rows.cause}")
        code = pb.TritonError.INVALID_ARG if rows.malformed else pb.TritonError.INTERNAL
        return pb.InferenceResponse(error=pb.TritonError(f"{self._spec.name}: {rows.message}", code))
