"""The graphs of a model repository in this process: what serving is compared with, for answers and for speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from skillserve.errors import RepositoryError
from skillserve.graph_file import check_graph
from skillserve.machine import threads_for_all_cores
from skillserve.tensors import (
    INPUT_IDS,
    MODEL_NAMES,
    OUTPUT_NAMES,
    SEQ_END,
    SEQ_LENS,
    TOK_END,
    Ids,
    Role,
    pack,
    token_budget_batches,
)
from skillserve_client.configuration import read_configuration, served_version
from skillserve_client.wire import Floats, ServedModel, encode

__all__ = ["LocalEmbedder", "LocalModel"]

_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""Triton's `optimization.graph.level` → ONNX Runtime's."""


class LocalModel:
    """A model of a repository, of either role and layout, run with the options that its configuration asks for.

    `profile` is the beginning of the name of a file that ONNX Runtime writes what every operator took to.
    """

    def __init__(self, repository: Path, role: Role, *, profile: Path | None = None) -> None:
        self.folder = repository / MODEL_NAMES[role]
        config = read_configuration(self.folder)
        version = served_version(config)
        self.model = ServedModel.from_config(
            role,
            version=version,
            parameters={key: value.string_value for key, value in config.parameters.items()},
            output_dims=config.output[0].dims,
            max_batch_size=config.max_batch_size,
        )
        graph = self.folder / version / config.default_model_filename
        check_graph(graph, digest=self.model.graph_digest or None)
        self.options = _options(config)
        if profile is not None:
            self.options.enable_profiling = True
            self.options.profile_file_prefix = str(profile)
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph), sess_options=self.options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise RepositoryError(
                f"graph `{graph}`",
                got=f"{type(error).__name__}: {error}",
                wanted="a graph that ONNX Runtime loads",
                fix="Export it again: skillserve export WEIGHTS",
            ) from error

    def run(self, sequences: Sequence[Ids]) -> Floats:
        """Rows `[n, D]` or `[n]` of sequences that are run together, as one request of the server's.

        What is more than the graph is to compute at once is run in turns, as our backend does.
        """
        if self.model.layout == "padded":
            return self._rows(encode(sequences, self.model))
        at_once = self.model.execution_tokens or sum(map(len, sequences))
        turns = token_budget_batches(list(map(len, sequences)), max_tokens=at_once)
        return np.concatenate([self._packed_rows(sequences[turn]) for turn in turns])

    def _packed_rows(self, sequences: Sequence[Ids]) -> Floats:
        packed = pack(sequences)
        return self._rows(
            {
                INPUT_IDS: packed.input_ids[0],
                SEQ_LENS: packed.seq_lens[0],
                TOK_END: np.array([packed.input_ids.size], np.int32),
                SEQ_END: np.array([len(sequences)], np.int32),
            }
        )

    def _rows(self, feeds: Mapping[str, npt.NDArray[np.int32]]) -> Floats:
        rows: Floats = self._session.run([OUTPUT_NAMES[self.model.role]], feeds)[0]
        return rows

    def run_each(self, sequences: Sequence[Ids]) -> Floats:
        """Rows of sequences that are run one by one, so that none could touch another."""
        return np.concatenate([self.run([sequence]) for sequence in sequences])

    def end_profiling(self) -> Path:
        """The file that the profile stands in; nothing more is added to it."""
        return Path(self._session.end_profiling())


class LocalEmbedder(LocalModel):
    """The packed embedder of a repository."""

    def __init__(self, repository: Path) -> None:
        super().__init__(repository, "embedder")
        if self.model.layout != "packed":
            raise RepositoryError(
                f"model folder `{self.folder}`",
                got=f"layout {self.model.layout}",
                wanted="layout packed",
                fix="Export it: skillserve export WEIGHTS --layout packed",
            )

    def embed(self, sequences: Sequence[Ids]) -> Floats:
        """Embeddings `[n, D]` of sequences that are run together, as one request of the server's."""
        return self.run(sequences)

    def embed_each(self, sequences: Sequence[Ids]) -> Floats:
        """Embeddings `[n, D]` of sequences that are run one by one, so that none could touch another."""
        return self.run_each(sequences)


def _options(config: Any) -> onnxruntime.SessionOptions:  # noqa: ANN401 - protobuf messages carry no usable types
    """What the configuration asks of either ONNX Runtime backend, with their defaults."""
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[config.optimization.graph.level]
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", "0")) or threads_for_all_cores()
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", "0"))
    if parameters.get("execution_mode") == "1":
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = parameters.get("enable_mem_arena", "1").lower() in {"1", "true"}
    options.enable_mem_pattern = parameters.get("enable_mem_pattern", "1").lower() in {"1", "true"}
    options.log_severity_level = 3
    # As the server's backend has it; threads that spin after a run would take the cores of a server that is measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
