"""Settings of the room `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from skillserve.settings.section import GraphGib, Section
from skillserve.tensors import Precision, Runtime

__all__ = ["ExportSettings", "PlanSettings"]


class ExportSettings(Section):
    """From weights to a servable graph."""

    repository: Path = Field(Path("models"), description="model repository that `export` writes and `verify` checks")
    attention_core: Literal["loop", "gather"] = Field(
        "loop",
        description="`loop` visits sequence after sequence (best on CPU), `gather` pads inside attention only (GPU)",
    )
    precision: Precision = Field(
        "fp32",
        description="what the graph computes in: fp32, int8 for CPUs, bf16 or fp16 for GPUs; w8 and w4 store only "
        "weights in so many bits; below fp32 rankings are judged as with --gate, on --data or else the sample",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where the graph is run to be judged; what does not run there is not written"
    )
    runtime: Runtime = Field(
        "onnxruntime",
        description="what executes the graph in the server; `tensorrt` needs a plan (`skillserve plan`), "
        "`onnxruntime-tensorrt` builds its engine when it loads; both need --layout padded and a GPU",
    )
    num_buckets: int = Field(
        0,
        ge=0,
        le=16,
        description="lengths that TensorRT is tuned for and clients fill rows up to, chosen by the lengths of --data; "
        "0: as many as save a token of padding each for every hundred tokens",
    )
    tuned_tokens: int = Field(
        4_096, ge=1, description="tokens of the execution that TensorRT tunes for, in each bucket; padding counts"
    )
    engine_cache: Path = Field(
        Path("/var/cache/skillserve/engines"),
        description="folder of the server in which ONNX Runtime's TensorRT provider keeps engines and timings",
    )
    max_batch_size: int = Field(64, ge=1, description="requests that the server may join in one execution")
    max_queue_delay_microseconds: int = Field(
        0,
        ge=0,
        description="how long the server waits for company; a lone request pays it in full",
    )
    max_request_tokens: int = Field(32_768, ge=1, description="most tokens the server accepts in one request")
    execution_tokens: int = Field(
        2_048,
        ge=0,
        description="tokens that a packed graph with --attention-core loop computes at once, so that they stay in the "
        "processor's caches; more are computed in turns; 0: all of a batch. Not for late interaction, which reads a "
        "request again in each turn",
    )
    num_threads: int = Field(0, ge=0, description="intra-op threads of ONNX Runtime; 0: all cores")
    version: int = Field(
        1, ge=1, description="model version that is written and served; the folder holds this one only"
    )
    max_graph_gib: GraphGib = 64.0
    gate_requests: int = Field(
        0, ge=0, description="judged requests that the rank gate asks, evenly spread over those of --data; 0: all"
    )
    gate_depth: int = Field(20, ge=1, description="candidates of a request that the rank gate has a reranker order")


class PlanSettings(Section):
    """From a padded graph to a TensorRT plan, on the GPU that will run it."""

    cache: Path = Field(
        Path("engines"), description="folder of built plans and of TensorRT's timings; removing it costs time only"
    )
    workspace_gib: float = Field(4.0, gt=0, description="most GPU memory that a layer may use beside its tensors, GiB")
    optimization_level: int = Field(
        3, ge=0, le=5, description="how long TensorRT searches for kernels; 5 takes longest and may run fastest"
    )
