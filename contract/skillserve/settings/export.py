"""Settings of the room `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from skillserve.settings.section import GraphGib, Section
from skillserve.tensors import Precision

__all__ = ["ExportSettings"]


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
    max_batch_size: int = Field(64, ge=1, description="requests that the server may join in one execution")
    max_queue_delay_microseconds: int = Field(
        0,
        ge=0,
        description="how long the server waits for company; a lone request pays it in full",
    )
    max_request_tokens: int = Field(32_768, ge=1, description="most tokens the server accepts in one request")
    num_threads: int = Field(0, ge=0, description="intra-op threads of ONNX Runtime; 0: all cores")
    version: int = Field(
        1, ge=1, description="model version that is written and served; the folder holds this one only"
    )
    max_graph_gib: GraphGib = 64.0
    gate_requests: int = Field(
        0, ge=0, description="judged requests that the rank gate asks, evenly spread over those of --data; 0: all"
    )
    gate_depth: int = Field(20, ge=1, description="candidates of a request that the rank gate has a reranker order")
