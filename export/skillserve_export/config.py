"""`config.pbtxt` of a served model, built as Triton's own protobuf message and never as a string.

The same file is read by the C++ ONNX Runtime backend of a production server and by our Python-based backend; what is
different for TensorRT stands in `tensorrt_config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import (
    TYPE_FP32,
    TYPE_INT32,
    BatchInput,
    BatchOutput,
    ModelConfig,
    ModelInstanceGroup,
)

from skillserve.card import ModelCard
from skillserve.max_sim import Interaction
from skillserve.settings import ExportSettings
from skillserve.tensors import (
    ATTENTION_MASK,
    DIGEST_PARAMETER,
    EXECUTION_TOKENS_PARAMETER,
    GRAPH_DIGEST_PARAMETER,
    INPUT_IDS,
    LAYOUT_PARAMETER,
    MAX_SEQUENCE_TOKENS_PARAMETER,
    MAX_TOKENS_PARAMETER,
    MODEL_NAMES,
    OUTPUT_NAMES,
    PRECISION_PARAMETER,
    SCALE_PARAMETER,
    SEQ_END,
    SEQ_LENS,
    TOK_END,
    VOCAB_SIZE_PARAMETER,
    WINDOW_PARAMETER,
    Ids,
    Layout,
    Packed,
    Precision,
    Role,
)
from skillserve_export.profiles import Profiles
from skillserve_export.record import GRAPH_FILE
from skillserve_export.tensorrt_config import for_plan, for_provider

__all__ = ["BACKEND", "WARMUP_FOLDER", "Stamp", "TokenRows", "model_config", "to_pbtxt", "warmup_tensors"]

ATTENTION_CORE_PARAMETER = "skillserve_attention_core"
BACKEND = "onnxruntime"
WARMUP_FOLDER = "warmup"


@dataclass(frozen=True, slots=True)
class _Batching:
    """A batch quantity that the server derives from the shapes of the requests that it joined."""

    target: str
    source: str


_ENDS = (_Batching(TOK_END, INPUT_IDS), _Batching(SEQ_END, SEQ_LENS))


class TokenRows(NamedTuple):
    """What a token embedder gives, and what scores are made with of it."""

    dim: int
    interaction: Interaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What the configuration says of the graph beside it."""

    layout: Layout
    precision: Precision
    graph_digest: str
    """Of its files, see `skillserve.graph_file`; the backend compares what it is about to load."""
    tokens: TokenRows | None = None
    """Of a token embedder."""


def model_config(
    card: ModelCard, settings: ExportSettings, stamp: Stamp, warmup: Packed, profiles: Profiles | None = None
) -> Any:
    """The ModelConfig message of one model; `warmup` is run before it is ready, `profiles` are for TensorRT."""
    role: Role = card.role if stamp.tokens is None else "token_embedder"
    config = ModelConfig(
        name=MODEL_NAMES[role],
        backend=BACKEND,
        default_model_filename=GRAPH_FILE,
        max_batch_size=settings.max_batch_size,
    )
    # Specific: the default policy would switch every client to the newest folder that appears.
    config.version_policy.specific.versions.append(settings.version)
    # AUTO: a group of kind GPU is refused by a server without one.
    config.instance_group.add(count=1, kind=ModelInstanceGroup.KIND_AUTO)
    config.dynamic_batching.max_queue_delay_microseconds = settings.max_queue_delay_microseconds
    if stamp.layout == "packed":
        _packed_tensors(config, role, card.dim if stamp.tokens is None else stamp.tokens.dim)
    else:
        _padded_tensors(config, card)
    _warmup(config, stamp.layout, warmup)
    for name, value in _parameters(card, settings, stamp).items():
        config.parameters[name].string_value = value
    if profiles is not None and settings.runtime == "tensorrt":
        for_plan(config, profiles)
    elif profiles is not None:
        for_provider(config, profiles, settings.engine_cache / stamp.graph_digest[:16])
    return config


def to_pbtxt(config: Any) -> str:
    """The message as text, maps in key order, so that equal configurations are equal files."""
    return str(text_format.MessageToString(config))


def _packed_tensors(config: Any, role: Role, dim: int | None) -> None:
    for name in (INPUT_IDS, SEQ_LENS):
        config.input.add(name=name, data_type=TYPE_INT32, dims=[-1], allow_ragged_batch=True)
    # The leading -1 is the sequence dimension that the scatter fills in; [D] alone loads and misbehaves.
    # A row a token, where rows are of tokens.
    dims = [-1] if dim is None else [-1, dim]
    output = OUTPUT_NAMES[role]
    config.output.add(name=output, data_type=TYPE_FP32, dims=dims)
    for end in _ENDS:
        config.batch_input.add(
            kind=BatchInput.BATCH_ACCUMULATED_ELEMENT_COUNT,
            target_name=[end.target],
            data_type=TYPE_INT32,
            source_input=[end.source],
        )
    config.batch_output.add(
        target_name=[output],
        kind=BatchOutput.BATCH_SCATTER_WITH_INPUT_SHAPE,
        source_input=[INPUT_IDS if role == "token_embedder" else SEQ_LENS],
    )


def _padded_tensors(config: Any, card: ModelCard) -> None:
    for name in (INPUT_IDS, ATTENTION_MASK):
        config.input.add(name=name, data_type=TYPE_INT32, dims=[-1])
    output = config.output.add(name=OUTPUT_NAMES[card.role], data_type=TYPE_FP32, dims=[card.dim or 1])
    if card.dim is None:
        output.reshape.SetInParent()  # the graph gives [B], Triton's dims cannot be empty


def warmup_tensors(layout: Layout, warmup: Packed) -> dict[str, Ids]:
    """Input → its numbers in the request that warms a model up; of a padded model its first sequence alone."""
    ids, lens = warmup.input_ids[0], warmup.seq_lens[0]
    if layout == "packed":
        return {INPUT_IDS: ids, SEQ_LENS: lens}
    row = ids[: lens[0]]  # all sequences in one row may be more than the model reads
    return {INPUT_IDS: row, ATTENTION_MASK: np.ones_like(row)}


def _warmup(config: Any, layout: Layout, warmup: Packed) -> None:
    sample = config.model_warmup.add(name="texts", batch_size=1)
    for name, numbers in warmup_tensors(layout, warmup).items():
        tensor = sample.inputs[name]
        tensor.data_type = TYPE_INT32
        tensor.dims.append(len(numbers))
        tensor.input_data_file = name


def _parameters(card: ModelCard, settings: ExportSettings, stamp: Stamp) -> dict[str, str]:
    parameters = {
        DIGEST_PARAMETER: card.digest,
        GRAPH_DIGEST_PARAMETER: stamp.graph_digest,
        LAYOUT_PARAMETER: stamp.layout,
        PRECISION_PARAMETER: stamp.precision,
        ATTENTION_CORE_PARAMETER: settings.attention_core if stamp.layout == "packed" else "padded",
        VOCAB_SIZE_PARAMETER: str(card.vocab_size),
        MAX_SEQUENCE_TOKENS_PARAMETER: str(card.max_tokens),
        MAX_TOKENS_PARAMETER: str(settings.max_request_tokens),
    }
    if stamp.tokens is not None:
        parameters[WINDOW_PARAMETER] = str(stamp.tokens.interaction.window)
        parameters[SCALE_PARAMETER] = repr(float(stamp.tokens.interaction.scale))
    # Late interaction reads a request again in each execution that holds pairs of it, which costs more than it gains.
    pairs_apart = card.score_kind == "max_sim" and stamp.tokens is None
    if stamp.layout == "packed" and settings.attention_core == "loop" and not pairs_apart:
        parameters[EXECUTION_TOKENS_PARAMETER] = str(settings.execution_tokens)
    if settings.num_threads:
        parameters["intra_op_thread_count"] = str(settings.num_threads)
    return parameters
