"""The graph behind Triton, asked by so many clients at once through the project's own asyncio client.

Clients send what a search sends: a text to be embedded alone, the candidates of a request together.
"""

from __future__ import annotations

import asyncio
import time

import numpy as np

from skillserve.settings import ClientSettings
from skillserve.tensors import Ids, Precision, Role
from skillserve_bench.server import Server
from skillserve_bench.speed.contenders import Contender, Pass
from skillserve_bench.speed.workload import Part
from skillserve_client import AsyncTriton
from skillserve_client.wire import Floats

__all__ = ["served_contender"]

_TIMEOUT_S = 600.0
"""A request waits behind those of all other clients, on whatever machine this is."""


def served_contender(
    server: Server, role: Role, precision: Precision, *, num_clients: int, max_tokens: int, digest: str
) -> Contender:
    """A contender that gets token ids, as the graph in process does; its clock begins when the connection stands."""
    settings = ClientSettings(
        url=server.url, num_in_flight=num_clients, timeout_s=_TIMEOUT_S, max_request_tokens=max_tokens
    )

    def measure(part: Part) -> Pass:
        sequences = part.tokenised()
        requests = [sequences[i : i + part.num_together] for i in range(0, len(sequences), part.num_together)]
        rows, run_s = asyncio.run(_drive(settings, role, requests, num_clients, digest))
        return Pass(rows=rows, run_s=run_s, tokenise_s=None)

    return Contender(
        name=f"Triton {precision}, {num_clients} clients", kind="served", precision=precision, measure=measure
    )


async def _drive(
    settings: ClientSettings, role: Role, requests: list[list[Ids]], num_clients: int, digest: str
) -> tuple[Floats, float]:
    answers: dict[int, Floats] = {}
    waiting = iter(enumerate(requests))
    async with AsyncTriton(settings) as triton:
        await triton.served(role)

        async def client() -> None:
            for i, request in waiting:
                answers[i] = await triton.infer(role, request, digest=digest)

        begin = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(num_clients):
                    group.create_task(client())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        run_s = time.perf_counter() - begin
    return np.concatenate([answers[i] for i in range(len(requests))]), run_s
