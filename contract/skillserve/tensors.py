"""The wire contract: names, types and shapes of what travels between client, server and graph.

Shape legend: R requests joined in one execution, S sequences (Σn), T tokens (ΣT), D embedding dimension.

    wire, one request     input_ids INT32 [1, T]   seq_lens INT32 [1, n]
    graph, R requests     input_ids [ΣT]  seq_lens [Σn]  tok_end [R]  seq_end [R]
    answer, one request   embedding FP32 [1, n, D]   or   score FP32 [1, n]   or   token_embedding FP32 [1, T, D]

`tok_end` and `seq_end` are filled in by the server from the request SHAPES, which a client cannot forge;
the graph's guard uses them to keep a malformed request away from its neighbours. Rows of a malformed
request are NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "ATTENTION_MASK",
    "BUCKETS_PARAMETER",
    "DIGEST_PARAMETER",
    "EXECUTION_TOKENS_PARAMETER",
    "GRAPH_DIGEST_PARAMETER",
    "INPUT_IDS",
    "LAYOUT_PARAMETER",
    "MAX_SEQUENCE_TOKENS_PARAMETER",
    "MAX_TOKENS_PARAMETER",
    "MODEL_NAMES",
    "OUTPUT_NAMES",
    "PRECISION_PARAMETER",
    "SCALE_PARAMETER",
    "SEQ_END",
    "SEQ_LENS",
    "TOK_END",
    "VOCAB_SIZE_PARAMETER",
    "WINDOW_PARAMETER",
    "Ids",
    "Layout",
    "Packed",
    "Precision",
    "Role",
    "Runtime",
    "WeightsRole",
    "pack",
    "token_budget_batches",
    "weights_role",
]

WeightsRole = Literal["embedder", "reranker"]
"""What weights are trained for, as their card says."""
Role = Literal["embedder", "reranker", "token_embedder"]
"""What a served model does. A reranker by late interaction is served as two: one scores pairs, the token embedder reads
single texts, so that those of skills can be read long before anybody asks (`skillserve.max_sim`)."""
Layout = Literal["packed", "padded"]
"""`packed`: this module's wire. `padded`: `input_ids` and `attention_mask` INT32 `[B, L]`, rows `[B, D]` or `[B]`;
for TensorRT plans, and as the conventional deployment that we measure against."""
Precision = Literal["fp32", "bf16", "fp16", "int8", "w8", "w4"]
"""In which numbers a graph computes, or for `w8` and `w4` only stores its weights. Outputs are float32 always."""
Runtime = Literal["onnxruntime", "onnxruntime-tensorrt", "tensorrt"]
"""What executes a graph in the server: ONNX Runtime, its TensorRT provider, or TensorRT itself by a plan."""
Ids = npt.NDArray[np.int32]
"""Token ids of one sequence, `[L]`."""

INPUT_IDS = "input_ids"
SEQ_LENS = "seq_lens"
ATTENTION_MASK = "attention_mask"
TOK_END = "tok_end"
SEQ_END = "seq_end"

MODEL_NAMES: dict[Role, str] = {
    "embedder": "skill_embedder",
    "reranker": "skill_reranker",
    "token_embedder": "skill_token_embedder",
}
OUTPUT_NAMES: dict[Role, str] = {"embedder": "embedding", "reranker": "score", "token_embedder": "token_embedding"}

# Parameters that the export stamps into config.pbtxt.
DIGEST_PARAMETER = "skillserve_digest"
GRAPH_DIGEST_PARAMETER = "skillserve_graph_digest"
"""Of the graph's files, see `skillserve.graph_file`; the other digest is of weights, tokenizer and card."""
LAYOUT_PARAMETER = "skillserve_layout"
PRECISION_PARAMETER = "skillserve_precision"
VOCAB_SIZE_PARAMETER = "skillserve_vocab_size"
MAX_SEQUENCE_TOKENS_PARAMETER = "skillserve_max_sequence_tokens"
WINDOW_PARAMETER = "skillserve_late_window"
SCALE_PARAMETER = "skillserve_late_scale"
"""Of token embedders: what scores are made of them with, see `skillserve.max_sim.Interaction`."""
BUCKETS_PARAMETER = "skillserve_length_buckets"
"""Lengths that clients fill rows up to, as `32,96,256`, so that the server finds requests of equal shape to join."""
MAX_TOKENS_PARAMETER = "skillserve_max_request_tokens"
"""Most tokens one request may carry: memory is bounded by this, `max_batch_size` only counts requests."""
EXECUTION_TOKENS_PARAMETER = "skillserve_execution_tokens"
"""Tokens that our Python-based backend gives a packed graph at once, at most; more are computed in turns, which is
faster where activations then stay in the processor's caches. Absent: all of a batch, as Triton's own backend does."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One request as it travels: sequences concatenated without padding."""

    input_ids: npt.NDArray[np.int32]
    """`[1, T]`"""
    seq_lens: npt.NDArray[np.int32]
    """`[1, n]`, summing to T"""


def weights_role(role: Role) -> WeightsRole:
    """Whose weights a served model has.

    >>> weights_role("token_embedder")
    'reranker'
    """
    return "embedder" if role == "embedder" else "reranker"


def pack(sequences: Sequence[Ids]) -> Packed:
    """Concatenate sequences into one request.

    >>> pack([np.array([101, 7, 102], np.int32), np.array([101, 102], np.int32)]).seq_lens
    array([[3, 2]], dtype=int32)
    """
    if not sequences:
        raise ValueError("a request carries at least one sequence")
    lens = np.fromiter((len(sequence) for sequence in sequences), np.int32, len(sequences))
    ids = np.concatenate(sequences).astype(np.int32, copy=False)
    return Packed(input_ids=ids[None, :], seq_lens=lens[None, :])


def token_budget_batches(lens: Sequence[int], *, max_tokens: int) -> Iterator[slice]:
    """Cut a list of sequences, in order, into runs of at most `max_tokens` tokens; a longer sequence travels alone.

    >>> list(token_budget_batches([5, 5, 5, 20, 1], max_tokens=10))
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None), slice(4, 5, None)]
    """
    start = tokens = 0
    for i, length in enumerate(lens):
        if i > start and tokens + length > max_tokens:
            yield slice(start, i)
            start, tokens = i, 0
        tokens += length
    if start < len(lens):
        yield slice(start, len(lens))
