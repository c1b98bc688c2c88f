"""What is refused, or said aloud, before a server is started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from skillserve.console import talk
from skillserve.errors import ConfigError
from skillserve.tensors import MODEL_NAMES
from skillserve_serving.addresses import is_loopback
from skillserve_serving.installation import Installation
from skillserve_serving.repository import ServedModel

__all__ = ["check_embedder", "check_exposure"]


def check_embedder(repository: Path, models: Sequence[ServedModel]) -> None:
    """A server for rerankers alone is legitimate; one that lacks its embedder by mistake finds nothing."""
    if all(model.name != MODEL_NAMES["embedder"] for model in models):
        talk(
            f"WARNING: model repository `{repository}` has no `{MODEL_NAMES['embedder']}`: "
            "skillserve index and search need one."
        )


def check_exposure(address: str, installation: Installation) -> None:
    """Exposure is a decision: refused for the embedded server, said aloud for any other."""
    if installation.embedded:
        talk(
            "Using the embedded Triton from PyPI: release 24.10, for development only. "
            "It predates the security fixes of 2025 and 2026 and is bound to this machine."
        )
    if is_loopback(address):
        return
    if installation.embedded:
        raise ConfigError(
            "setting --host",
            got=f"{address} for the embedded Triton, which has known remote holes",
            wanted="a loopback address",
            fix="Serve other machines with NVIDIA's container (26.07 or newer) or name its binary with --tritonserver.",
        )
    talk(
        f"WARNING: the server listens on {address} without authentication or encryption: "
        "whoever reaches it can use it. Its control interfaces are closed with a key; "
        "the rest is for your network to guard."
    )
