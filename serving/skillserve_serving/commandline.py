"""The command line of a Triton: what it serves, where, and what it leaves to nobody else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from skillserve.settings import ServeSettings
from skillserve_serving.addresses import bracketed, http_bind_address, is_loopback
from skillserve_serving.health import CONTROL_HEADER

__all__ = ["STOP_GRACE_S", "server_arguments"]

STOP_GRACE_S = 10
"""How long a server may finish the requests in flight before it is killed."""
_CLOSED_TO_OTHERS = "model-repository,shared-memory,trace,logging"


def server_arguments(
    settings: ServeSettings,
    *,
    address: str,
    repository: Path,
    backends: Path,
    models: Iterable[str],
    regions: str,
    control_key: str,
    on_cpu: bool,
) -> list[str]:
    """Arguments for the binary, which is to load these models and no others.

    `address` is the one to bind, of numbers; beyond loopback, whoever does not send `control_key` controls nothing.
    `regions` is the prefix of the names of its shared memory.
    """
    arguments = [
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={regions}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in models),
        "--disable-auto-complete-config",  # ours are complete, and each completion costs a stub of its own
        f"--exit-timeout-secs={STOP_GRACE_S // 2}",
        f"--http-address={http_bind_address(address)}",
        f"--http-port={settings.http_port}",
        f"--grpc-address={bracketed(address)}",
        f"--grpc-port={settings.grpc_port}",
        f"--metrics-address={http_bind_address(address)}",
        f"--metrics-port={settings.metrics_port}",
    ]
    if on_cpu:
        arguments.append("--allow-gpu-metrics=false")  # our backend uses none
    if not is_loopback(address):
        arguments += [
            f"--http-restricted-api={_CLOSED_TO_OTHERS}:{CONTROL_HEADER}={control_key}",
            f"--grpc-restricted-protocol={_CLOSED_TO_OTHERS}:{CONTROL_HEADER}={control_key}",
        ]
    return arguments
