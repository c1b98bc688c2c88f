"""Settings of the room `serving`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from skillserve.settings.section import GraphGib, Port, Section

__all__ = ["ServeSettings"]


class ServeSettings(Section):
    """Starting a server."""

    repository: Path = Field(Path("models"), description="model repository that is served")
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
