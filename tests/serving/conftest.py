"""A toy model repository: graphs of a few nodes with the exact signature of the exported ones.

The embedder sums the table rows of a sequence's tokens, the reranker weighs that sum. Two token ids are booby
traps that pass validation: NAN_ID gives a row that is not finite, CRASH_ID makes the runtime fail.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from skillserve.card import ModelCard
from skillserve.probe import Probe
from skillserve.settings import ServeSettings
from skillserve_serving.launcher import Triton, running_server

VOCAB = 32
DIM = 4
NAN_ID = 30
CRASH_ID = 31
MAX_SEQUENCE_TOKENS = 12
MAX_REQUEST_TOKENS = 40
DIGESTS = {"skill_embedder": "e" * 64, "skill_reranker": "f" * 64}
WEIGHTS = np.array([1.0, -2.0, 0.5, 0.25], np.float32)


def _table() -> np.ndarray:
    table = np.random.default_rng(5).normal(size=(VOCAB - 1, DIM)).astype(np.float32)  # CRASH_ID has no row
    table[NAN_ID] = np.nan
    return table


TABLE = _table()


def naive_rows(model: str, ids: Sequence[int], lens: Sequence[int]) -> np.ndarray:
    """The toy's answer, one sequence after the other: what no batch may change."""
    rows, start = [], 0
    for length in lens:
        rows.append(TABLE[list(ids[start : start + length])].sum(axis=0))
        start += length
    embedding = np.stack(rows)
    return embedding if model == "skill_embedder" else embedding @ WEIGHTS


def packed_graph(model: str) -> onnx.ModelProto:
    """[ΣT], [Σn], [R], [R] → [Σn, D] or [Σn]; all rows NaN unless tok_end and seq_end end where the inputs do."""
    scorer = model == "skill_reranker"
    output = "score" if scorer else "embedding"
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Shape", ["input_ids"], ["token_count"]),
        helper.make_node("Shape", ["seq_lens"], ["sequence_count"]),
        helper.make_node("Cast", ["seq_lens"], ["lens"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["lens", "last"], ["column"]),
        helper.make_node("CumSum", ["column", "zero"], ["ends"]),
        helper.make_node("CumSum", ["column", "zero"], ["starts"], exclusive=1),
        helper.make_node("Squeeze", ["token_count"], ["token_scalar"]),
        helper.make_node("Range", ["zero", "token_scalar", "one"], ["positions"]),
        helper.make_node("GreaterOrEqual", ["positions", "starts"], ["begun"]),
        helper.make_node("Less", ["positions", "ends"], ["unfinished"]),
        helper.make_node("And", ["begun", "unfinished"], ["member"]),
        helper.make_node("Unsqueeze", ["member", "last"], ["chosen"]),
        # Chosen, not weighed: 0 · NaN would carry one sequence's NaN into all others.
        helper.make_node("Where", ["chosen", "tokens", "nothing"], ["parts"]),
        helper.make_node("ReduceSum", ["parts", "axis1"], ["sums"], keepdims=0),
        *_end_check("tok_end", "token_count"),
        *_end_check("seq_end", "sequence_count"),
        helper.make_node("And", ["tok_end_right", "seq_end_right"], ["right"]),
        helper.make_node("Where", ["right", "nothing", "nan"], ["verdict"]),
        helper.make_node("Add", ["sums", "verdict"], ["rows" if scorer else output]),
    ]
    if scorer:
        nodes.append(helper.make_node("MatMul", ["rows", "weights"], [output]))
    inputs = {"input_ids": ["T"], "seq_lens": ["S"], "tok_end": ["R"], "seq_end": ["R"]}
    return _model(nodes, inputs, output, ["S"] if scorer else ["S", DIM])


def _end_check(end: str, count: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Gather", [end, "last"], [f"{end}_value"]),
        helper.make_node("Cast", [f"{end}_value"], [f"{end}_wide"], to=TensorProto.INT64),
        helper.make_node("Equal", [f"{end}_wide", count], [f"{end}_right"]),
    ]


def padded_graph(model: str) -> onnx.ModelProto:
    """[B, L], [B, L] → [B, D] or [B]."""
    scorer = model == "skill_reranker"
    output = "score" if scorer else "embedding"
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["tokens", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis1"], ["rows" if scorer else output], keepdims=0),
    ]
    if scorer:
        nodes.append(helper.make_node("MatMul", ["rows", "weights"], [output]))
    inputs = {"input_ids": ["B", "L"], "attention_mask": ["B", "L"]}
    return _model(nodes, inputs, output, ["B"] if scorer else ["B", DIM])


def _model(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[str]], output: str, shape: list[str | int]
) -> onnx.ModelProto:
    constants = {
        "table": TABLE,
        "weights": WEIGHTS,
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "last": np.array([-1], np.int64),
        "axis1": np.array([1], np.int64),
        "nothing": np.array(0, np.float32),
        "nan": np.array(np.nan, np.float32),
    }
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, TensorProto.INT32, dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def packed_config(model: str, extra: str = "") -> str:
    """config.pbtxt as the export writes it, for the toy."""
    output, dims = ("score", "[-1]") if model == "skill_reranker" else ("embedding", f"[-1, {DIM}]")
    return f"""
        name: "{model}"
        backend: "onnxruntime"
        max_batch_size: 64
        version_policy {{ specific {{ versions: 1 }} }}
        input {{ name: "input_ids" data_type: TYPE_INT32 dims: [-1] allow_ragged_batch: true }}
        input {{ name: "seq_lens" data_type: TYPE_INT32 dims: [-1] allow_ragged_batch: true }}
        output {{ name: "{output}" data_type: TYPE_FP32 dims: {dims} }}
        batch_input {{ kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "tok_end" data_type: TYPE_INT32
                       source_input: "input_ids" }}
        batch_input {{ kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "seq_end" data_type: TYPE_INT32
                       source_input: "seq_lens" }}
        batch_output {{ target_name: "{output}" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "seq_lens" }}
        instance_group {{ count: 1 kind: KIND_AUTO }}
        dynamic_batching {{ max_queue_delay_microseconds: 20000 }}
        {_parameters(model, "packed")}
        {extra}
    """


def padded_config(model: str) -> str:
    """config.pbtxt of the padded layout."""
    scorer = model == "skill_reranker"
    output, dims = ("score", "[1] reshape { shape: [] }") if scorer else ("embedding", f"[{DIM}]")
    return f"""
        name: "{model}"
        backend: "onnxruntime"
        max_batch_size: 64
        version_policy {{ specific {{ versions: 1 }} }}
        input {{ name: "input_ids" data_type: TYPE_INT32 dims: [-1] }}
        input {{ name: "attention_mask" data_type: TYPE_INT32 dims: [-1] }}
        output {{ name: "{output}" data_type: TYPE_FP32 dims: {dims} }}
        instance_group {{ count: 1 kind: KIND_AUTO }}
        dynamic_batching {{ }}
        {_parameters(model, "padded")}
    """


def _parameters(model: str, layout: str) -> str:
    values = {
        "skillserve_digest": DIGESTS[model],
        "skillserve_layout": layout,
        "skillserve_vocab_size": VOCAB,
        "skillserve_max_sequence_tokens": MAX_SEQUENCE_TOKENS,
        "skillserve_max_request_tokens": MAX_REQUEST_TOKENS,
        "intra_op_thread_count": 1,
    }
    return "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in values.items()
    )


def write_model(repository: Path, model: str, *, padded: bool = False, extra: str = "") -> Path:
    """Write one toy model with card and probe; returns its folder."""
    folder = repository / model
    (folder / "1").mkdir(parents=True)
    onnx.save(padded_graph(model) if padded else packed_graph(model), folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(padded_config(model) if padded else packed_config(model, extra))
    embedder = model == "skill_embedder"
    card = ModelCard(
        name=model,
        role="embedder" if embedder else "reranker",
        family="toy",
        dim=DIM if embedder else None,
        vocab_size=VOCAB,
        max_tokens=MAX_SEQUENCE_TOKENS,
        max_query_tokens=MAX_SEQUENCE_TOKENS,
        pooling="mean" if embedder else None,
        frame="[CLS]{text}[SEP]" if embedder else "[CLS]{query}[SEP]{skill}[SEP]",
        score_kind="cosine" if embedder else "logit",
        base_model="toy",
        base_revision="1",
        licence="Apache-2.0",
        digest=DIGESTS[model],
    )
    (folder / "card.json").write_text(card.model_dump_json())
    ids, lens = (3, 1, 4, 1, 5, 9, 2, 6), (2, 5, 1)
    rows = naive_rows(model, ids, lens).reshape(len(lens), -1)
    probe = Probe(
        model=model,
        output="embedding" if embedder else "score",
        input_ids=ids,
        seq_lens=lens,
        expected=tuple(tuple(float(number) for number in row[:3]) for row in rows),
        tolerance=1e-5,
    )
    (folder / "probe.json").write_text(probe.model_dump_json())
    return folder


def packed_config_dict(model: str = "skill_embedder", **changes: Any) -> dict[str, Any]:
    """The packed configuration as Triton 2.51 hands it to a backend, with top-level changes."""
    output, dims = ("score", [-1]) if model == "skill_reranker" else ("embedding", [-1, DIM])
    tensor = {"data_type": "TYPE_INT32", "format": "FORMAT_NONE", "dims": [-1], "is_shape_tensor": False}
    counted = {"kind": "BATCH_ACCUMULATED_ELEMENT_COUNT", "data_type": "TYPE_INT32"}
    return {
        "name": model,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "runtime": "model.py",
        "version_policy": {"specific": {"versions": [1]}},
        "max_batch_size": 64,
        "input": [
            {"name": "input_ids", **tensor, "allow_ragged_batch": True, "optional": False},
            {"name": "seq_lens", **tensor, "allow_ragged_batch": True, "optional": False},
        ],
        "output": [{"name": output, "data_type": "TYPE_FP32", "dims": dims, "label_filename": ""}],
        "batch_input": [
            {**counted, "target_name": ["tok_end"], "source_input": ["input_ids"]},
            {**counted, "target_name": ["seq_end"], "source_input": ["seq_lens"]},
        ],
        "batch_output": [
            {"target_name": [output], "kind": "BATCH_SCATTER_WITH_INPUT_SHAPE", "source_input": ["seq_lens"]}
        ],
        "optimization": {
            "priority": "PRIORITY_DEFAULT",
            "input_pinned_memory": {"enable": True},
            "output_pinned_memory": {"enable": True},
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": False,
        },
        "dynamic_batching": {"preferred_batch_size": [64], "priority_queue_policy": {}},
        "instance_group": [{"name": "x_0", "kind": "KIND_CPU", "count": 1, "gpus": [], "host_policy": ""}],
        "default_model_filename": "model.onnx",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": _parameter_dict(model),
        "model_warmup": [],
        **changes,
    }


def _parameter_dict(model: str) -> dict[str, dict[str, str]]:
    return {
        "skillserve_digest": {"string_value": DIGESTS[model]},
        "skillserve_layout": {"string_value": "packed"},
        "skillserve_vocab_size": {"string_value": str(VOCAB)},
        "skillserve_max_sequence_tokens": {"string_value": str(MAX_SEQUENCE_TOKENS)},
        "skillserve_max_request_tokens": {"string_value": str(MAX_REQUEST_TOKENS)},
    }


def toy_session(model: onnx.ModelProto) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Run a toy graph in this process."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)[0]


def free_ports(count: int) -> list[int]:
    """Ports that nobody holds at this moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def serve_settings(repository: Path, **changes: Any) -> ServeSettings:
    """Settings with free ports."""
    http, grpc, metrics = free_ports(3)
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    return ServeSettings.model_validate({"repository": repository, **ports, "start_deadline_s": 60, **changes})


@dataclass(frozen=True)
class Toys:
    """What tests of this room build with, handed over as one fixture."""

    write_model: Callable[..., Path] = write_model
    settings: Callable[..., ServeSettings] = serve_settings
    config: Callable[..., dict[str, Any]] = packed_config_dict
    naive: Callable[..., np.ndarray] = naive_rows
    session: Callable[[onnx.ModelProto], Callable[[dict[str, np.ndarray]], np.ndarray]] = toy_session
    packed_graph: Callable[[str], onnx.ModelProto] = packed_graph
    padded_graph: Callable[[str], onnx.ModelProto] = padded_graph
    free_ports: Callable[[int], list[int]] = free_ports
    vocab: int = VOCAB
    dim: int = DIM
    nan_id: int = NAN_ID
    crash_id: int = CRASH_ID
    max_sequence_tokens: int = MAX_SEQUENCE_TOKENS
    max_request_tokens: int = MAX_REQUEST_TOKENS


@pytest.fixture(scope="session")
def toys() -> Toys:
    return Toys()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Embedder and reranker, packed."""
    for model in DIGESTS:
        write_model(tmp_path / "models", model)
    return tmp_path / "models"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """The real embedded server on the toy repository, shared by the tests of a module that leave it as it was."""
    models = tmp_path_factory.mktemp("served") / "models"
    for model in DIGESTS:
        write_model(models, model)
    with running_server(serve_settings(models)) as running:
        yield running
        running.stop(grace_s=0)  # nobody is served any more
