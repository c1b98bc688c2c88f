"""Opens a graph with ONNX Runtime as a model's configuration asks, and proves that it runs before anybody calls it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from skillserve.errors import RepositoryError
from skillserve.graph_file import check_graph
from skillserve.machine import threads_for_all_cores
from skillserve_serving.ragged import Feeds, Graph, Rows, join
from skillserve_serving.spec import ModelSpec, SessionSpec

__all__ = ["open_graph"]

_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def open_graph(spec: ModelSpec, version_folder: Path) -> Graph:
    """Check, load and warm the graph of one model version; raises RepositoryError if it is not the configured one."""
    path = version_folder / spec.session.filename
    check_graph(path, digest=spec.graph_digest)
    try:
        session = onnxruntime.InferenceSession(
            str(path), sess_options=_options(spec.session), providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise _refused(spec, f"a graph that ONNX Runtime cannot load ({type(error).__name__})") from error
    _check_tensors(spec, session)
    run_options = onnxruntime.RunOptions()
    if spec.session.arena_shrinkage:
        run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", spec.session.arena_shrinkage)

    def graph(feeds: Feeds) -> Rows:
        rows: Rows = session.run([spec.output], feeds, run_options)[0]
        return rows

    _warm(spec, graph)
    return graph


def _options(spec: SessionSpec) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[spec.graph_level]
    options.intra_op_num_threads = spec.intra_op_thread_count or threads_for_all_cores()
    options.inter_op_num_threads = spec.inter_op_thread_count
    if spec.parallel:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    # Threads spin for the next operator within a run, which makes a lone request faster, and rest after it: server
    # and client need the cores to bring the next request.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.enable_cpu_mem_arena = spec.mem_arena
    options.enable_mem_pattern = spec.mem_pattern
    options.log_severity_level = 3
    return options


def _check_tensors(spec: ModelSpec, session: onnxruntime.InferenceSession) -> None:
    """The graph takes exactly the configured inputs and gives the configured output."""
    wanted = {*spec.inputs, *(entry.target for entry in spec.batch_inputs)}
    found = {tensor.name: tensor for tensor in session.get_inputs()}
    if found.keys() != wanted:
        raise _refused(spec, f"a graph with inputs {sorted(found)}", f"inputs {sorted(wanted)}")
    for name, tensor in found.items():
        rank = 2 if spec.layout == "padded" else 1
        if tensor.type != "tensor(int32)" or len(tensor.shape) != rank:
            raise _refused(spec, f"graph input `{name}` as {tensor.type} {tensor.shape}", f"int32 with {rank} dim(s)")
    outputs = {tensor.name: tensor.type for tensor in session.get_outputs()}
    if outputs.get(spec.output) != "tensor(float)":
        raise _refused(spec, f"a graph with outputs {outputs}", f"a float32 output `{spec.output}`")


def _warm(spec: ModelSpec, graph: Graph) -> None:
    """Run one sequence of one token: the first run allocates, and a graph that cannot run is not served."""
    one = np.ones((1, 1), np.int32)
    feeds = join(spec, [{spec.inputs[0]: np.zeros((1, 1), np.int32), spec.inputs[1]: one}])
    try:
        rows = graph(feeds)
    except Exception as error:
        raise _refused(spec, f"a graph that fails on one token ({type(error).__name__})") from error
    if rows.shape != (1, *spec.row_shape):
        raise _refused(spec, f"output rows of shape {list(rows.shape[1:])}", f"{list(spec.row_shape)} as configured")


def _refused(spec: ModelSpec, got: str, wanted: str = "a graph written by `skillserve export`") -> RepositoryError:
    return RepositoryError(f"model `{spec.name}`", got=got, wanted=wanted, fix="Export it again: skillserve export")
