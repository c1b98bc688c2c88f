"""Does a server without padding join requests of mixed lengths, and what is that worth?

32 closed-loop clients send one sequence each. The same sequences go to the packed model, to the conventional
padded one, and to the padded one with every row filled up to one length by the client, in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from skillserve.console import progress
from skillserve.errors import RepositoryError
from skillserve.settings import BenchSettings, ClientSettings
from skillserve.tensors import Layout
from skillserve_bench.alternation import alternate
from skillserve_bench.figures import Spread, paired_ratios, times
from skillserve_bench.inprocess import LocalEmbedder
from skillserve_bench.load.generator import Generator
from skillserve_bench.load.schedule import ClosedLoop
from skillserve_bench.load.target import InferTarget
from skillserve_bench.messages import messages, rows
from skillserve_bench.processor import Meter, Usage
from skillserve_bench.report import Findings, Table, cores
from skillserve_bench.server import Server
from skillserve_bench.workload import Workload, longest_for, make_workload, mixed_lengths
from skillserve_client import ServedModel, Triton
from skillserve_client.wire import Floats

__all__ = ["TOLERANCE", "Contender", "Round", "measure_batching", "run_round"]

TOLERANCE = 1e-5
"""Largest absolute difference that still counts as the same embedding. Float32 sums of a batch run in another
order than those of a row alone: 3e-7 was seen on unit vectors of 384 numbers; a neighbour's row is off by 0.1."""

PAD_TO = 64
"""Next power of two above the longest sequence."""

PACKED = "packed"

_WINDOW_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way of sending the workload to one server."""

    client: ClientSettings
    server_pid: int | None
    model: ServedModel
    requests: Sequence[bytes]
    triton: Triton
    """For the server's statistics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One pass of the workload."""

    per_s: float
    """Requests answered a second."""
    num_executions: int
    mean_batch: float
    """Requests that the server joined in one execution."""
    difference: float
    """Largest absolute difference between an answer and the in-process graph's."""
    usage: Usage


def measure_batching(
    packed: Server, padded: Server, *, repository: Path, data: Path | None, settings: BenchSettings
) -> Findings:
    """Run the comparison; `repository` is the packed server's. Raises ServerError, RepositoryError, CatalogueError."""
    local = LocalEmbedder(repository)
    lens = mixed_lengths(settings.num_requests, longest=longest_for(local.model), seed=settings.seed)
    workload = make_workload(local.folder, lens, data=data, seed=settings.seed)
    reference = local.embed_each(workload.sequences)
    with Triton(packed.reached()) as packed_triton, Triton(padded.reached()) as triton:
        packed_model = _served(packed_triton, "packed", local.model.digest)
        padded_model = _served(triton, "padded", local.model.digest)
        full = min(PAD_TO, padded_model.max_sequence_tokens or PAD_TO)
        contenders = {
            PACKED: Contender(
                client=packed.reached(),
                server_pid=packed.pid,
                model=packed_model,
                requests=messages(packed_model, [[each] for each in workload.sequences]),
                triton=packed_triton,
            ),
            **{
                name: Contender(
                    client=padded.reached(),
                    server_pid=padded.pid,
                    model=padded_model,
                    requests=messages(padded_model, [[each] for each in workload.sequences], pad_to=pad_to),
                    triton=triton,
                )
                for name, pad_to in (("padded", None), (f"padded to {full}", full))
            },
        }
        with (
            Generator(num_workers=1) as generator,
            progress("batching", (settings.rounds + 1) * len(contenders)) as bar,
        ):
            measured = alternate(
                {
                    name: _measurement(generator, contender, reference, settings)
                    for name, contender in contenders.items()
                },
                rounds=settings.rounds,
                advance=bar.advance,
            )
    return _findings(measured, workload, settings, packed.version)


def run_round(generator: Generator, contender: Contender, reference: Floats, *, num_clients: int) -> Round:
    """Send the workload once, then check every answer."""
    before = contender.triton.statistics("embedder")
    meter = Meter(contender.server_pid)
    load = ClosedLoop(num_clients=num_clients, seconds=None)
    target = InferTarget(contender.client, contender.model)
    run = generator.drive(target, contender.requests, load, window_s=_WINDOW_S, keep_answers=True)
    usage = meter.usage(load_s=run.cpu_s)
    if run.error is not None:
        raise run.error
    if generator.interrupted:
        raise KeyboardInterrupt
    seen = contender.triton.statistics("embedder").since(before)
    return Round(
        per_s=run.per_s,
        num_executions=seen.num_executions,
        mean_batch=seen.num_requests / seen.num_executions,
        difference=float(np.abs(rows(run.answers, contender.model) - reference).max()),
        usage=usage,
    )


def _measurement(
    generator: Generator, contender: Contender, reference: Floats, settings: BenchSettings
) -> Callable[[int], Round]:
    return lambda _number: run_round(generator, contender, reference, num_clients=settings.num_clients)


def _served(triton: Triton, layout: Layout, digest: str) -> ServedModel:
    model = triton.served("embedder")
    if (model.layout, model.digest) != (layout, digest):
        raise RepositoryError(
            f"the {layout} server's model",
            got=f"layout {model.layout}, digest {model.digest[:12]}",
            wanted=f"layout {layout}, digest {digest[:12]}, for both layouts are to be the same weights",
            fix=f"Export it again: skillserve export WEIGHTS --layout {layout}",
        )
    return model


def _findings(measured: dict[str, list[Round]], workload: Workload, settings: BenchSettings, server: str) -> Findings:
    base = [each.per_s for each in measured[PACKED]]
    per_s = {name: Spread.of([each.per_s for each in found]) for name, found in measured.items()}
    ratio = {name: Spread.of(paired_ratios([each.per_s for each in found], base)) for name, found in measured.items()}
    batch = {name: Spread.of([each.mean_batch for each in found]) for name, found in measured.items()}
    worst = {name: max(each.difference for each in found) for name, found in measured.items()}
    usage = {name: Usage.mean([each.usage for each in found]) for name, found in measured.items()}
    passed = all(difference <= TOLERANCE for difference in worst.values())
    others = "; ".join(f"{name} {ratio[name].median:.2f}" for name in measured if name != PACKED)
    return Findings(
        name="batching",
        title="Batching requests of mixed lengths, without padding and with it",
        passed=passed,
        summary=[
            (
                f"Without padding the server joined {batch[PACKED].median:.1f} requests per execution and answered "
                f"{per_s[PACKED].median:.0f} a second; throughput relative to that: {others}."
            ),
            (
                f"Answers differ from the in-process graph by at most {max(worst.values()):.1e} "
                f"(limit {TOLERANCE:.0e}): {'all right' if passed else 'WRONG ANSWERS'}."
            ),
        ],
        tables=[
            Table(
                title="Throughput",
                columns=[
                    "layout",
                    "mean batch",
                    "requests/s, median (min to max)",
                    "ratio to packed, median (min to max)",
                    "largest difference",
                    "cores: client / server / others",
                ],
                rows=[
                    [
                        name,
                        batch[name].text(1),
                        per_s[name].text(0),
                        ratio[name].text(2),
                        f"{worst[name]:.1e}",
                        cores(usage[name]),
                    ]
                    for name in measured
                ],
            )
        ],
        method=[
            (
                f"{settings.num_clients} closed-loop clients in one asyncio process, one sequence a request, "
                f"{settings.num_requests} requests a round, serialised beforehand."
            ),
            (
                f"Lengths drawn evenly from {workload.lengths} (mean {workload.mean_tokens:.1f}), "
                f"seed {settings.seed}; {workload.source}."
            ),
            (
                f"{times(settings.rounds, 'round')} after one of warm-up; each round measures every layout once, "
                "in turns, and ratios are formed within a round."
            ),
            (
                "Both servers run all the time, one instance of the model each, batching without queue delay; "
                "only one of them is asked at a time."
            ),
            (
                "Mean batch: requests divided by executions, from the server's own statistics. Every answer of every "
                "round is compared with the in-process graph, which ran each sequence alone."
            ),
        ],
        server=server,
        figures={
            name: {
                "mean_batch": asdict(batch[name]),
                "requests_per_s": asdict(per_s[name]),
                "ratio_to_packed": asdict(ratio[name]),
                "largest_difference": worst[name],
                "cores": asdict(usage[name]),
            }
            for name in measured
        },
    )
