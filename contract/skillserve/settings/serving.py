"""Settings of the room `serving`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from skillserve.settings.section import GraphGib, Port, Section

__all__ = ["Profile", "ServeSettings"]

Profile = Literal["latency", "throughput"]
"""What a server is tuned for: one request's time, or as many requests as possible."""


class ServeSettings(Section):
    """Starting a server."""

    repository: Path = Field(Path("models"), description="model repository that is served")
    profile: Profile | None = Field(
        None,
        description="tune the server for the time of one request or for many of them, where no setting says otherwise; "
        "not set: as the models were exported",
    )
    recommendation: Path | None = Field(
        None,
        description="file of `skillserve bench sweep --recommend-to` that the profile is read from; not set: "
        "recommendation.json in the repository, else defaults by the number of cores, or for GPUs",
    )
    num_instances: int | None = Field(
        None, ge=1, description="instances of each model that run beside each other; not set: as exported, one"
    )
    num_threads: int | None = Field(
        None, ge=0, description="intra-op threads of each instance, 0 for all cores; not set: as exported"
    )
    max_batch_size: int | None = Field(
        None, ge=1, description="requests that the server may join in one execution; not set: as exported"
    )
    execution_tokens: int | None = Field(
        None,
        ge=0,
        description="tokens that a model computes at once, 0 for all, where its export set a number; not set: as "
        "exported",
    )
    max_queue_delay_microseconds: int | None = Field(
        None,
        ge=0,
        description="how long the server waits for company, which a lone request pays in full; not set: as exported",
    )
    tritonserver: Path | None = Field(
        None, description="server binary; not set: `tritonserver` on PATH, then the embedded one"
    )
    host: str = Field(
        "127.0.0.1", description="address to bind; anything but loopback exposes a server without authentication"
    )
    http_port: Port = Field(8000, description="HTTP port, also used for health checks")
    grpc_port: Port = Field(8001, description="gRPC port")
    metrics_port: Port = Field(8002, description="Prometheus metrics port")
    start_deadline_s: float = Field(
        120.0, gt=0, description="give up when the models are not answering by then, seconds"
    )
    health_interval_s: float = Field(5.0, gt=0, description="pause between two health inferences, seconds")
    max_graph_gib: GraphGib = 64.0
    log_file: Path | None = Field(
        None, description="file that the server's log is appended to; not set: a temporary one, named when it is ready"
    )
