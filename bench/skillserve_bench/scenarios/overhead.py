"""What serving costs: the same graph with the same options, in this process and through the server, in turns.

Two questions. How much later does a lone request get its answer? And under load, how much of the throughput of
in-process batches is left, when the batches are as large as those that the server made?
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from skillserve.console import progress
from skillserve.errors import RepositoryError
from skillserve.settings import BenchSettings
from skillserve.tensors import Ids
from skillserve_bench.alternation import alternate
from skillserve_bench.figures import Spread, paired_differences, paired_ratios, quantile, times
from skillserve_bench.inprocess import LocalEmbedder
from skillserve_bench.load.generator import Generator
from skillserve_bench.messages import messages
from skillserve_bench.processor import Meter, Usage
from skillserve_bench.report import Findings, Table, cores
from skillserve_bench.scenarios.batching import TOLERANCE, Contender, Round, run_round
from skillserve_bench.server import Server
from skillserve_bench.workload import Workload, longest_for, make_workload, mixed_lengths
from skillserve_client import Triton
from skillserve_client.wire import Floats

__all__ = ["measure_overhead"]

LENGTHS = (8, 16, 32, 60)
"""Tokens of a lone request."""
WARM_UP_PAIRS = 20
MOST_ADDED_MS = 2.0
"""Goal: what the server may add to a lone request."""
LEAST_RATIO = 0.8
"""Goal: what must be left of the throughput of in-process batches."""

SERVED, LOCAL = "through the server", "in process"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """One measurement under load, on either side."""

    per_s: float
    mean_batch: float
    usage: Usage
    difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lone:
    """Latencies of one length, pair by pair."""

    served_ms: list[float]
    local_ms: list[float]

    @property
    def added_ms(self) -> Spread:
        """What the server added to each pair."""
        return Spread.within_quartiles(paired_differences(self.served_ms, self.local_ms))


def measure_overhead(server: Server, *, repository: Path, data: Path | None, settings: BenchSettings) -> Findings:
    """Run both comparisons; `repository` is the server's, on this machine. Raises ServerError, RepositoryError."""
    local = LocalEmbedder(repository)
    with Triton(server.reached()) as triton:
        model = triton.served("embedder")
        if (model.layout, model.digest) != (local.model.layout, local.model.digest):
            raise RepositoryError(
                f"server at {server.url}",
                got=f"an embedder of layout {model.layout}, digest {model.digest[:12]}",
                wanted=f"layout packed, digest {local.model.digest[:12]}, as in `{repository}`",
                fix=f"Serve that repository: skillserve serve --repository {repository}",
            )
        longest = longest_for(local.model)
        lone_lens = sorted({min(length, longest) for length in LENGTHS})
        lone_workload = make_workload(local.folder, lone_lens, data=data, seed=settings.seed)
        with progress("lone requests", 2 * len(lone_lens) * (settings.num_pairs + WARM_UP_PAIRS)) as bar:
            meter = Meter(server.pid)
            lone = _lone(triton, local, lone_workload.sequences, settings.num_pairs, bar.advance)
            lone_usage = meter.usage()
        lens = mixed_lengths(settings.num_requests, longest=longest, seed=settings.seed)
        workload = make_workload(local.folder, lens, data=data, seed=settings.seed)
        sequences = workload.sequences
        contender = Contender(
            client=server.reached(),
            server_pid=server.pid,
            model=model,
            requests=messages(model, [[each] for each in sequences]),
            triton=triton,
        )
        reference = local.embed_each(sequences)
        with Generator(num_workers=1) as generator, progress("load", 2 * (settings.rounds + 1)) as bar:
            load = _under_load(generator, contender, local, sequences, reference, settings, bar.advance)
    return _findings(lone, lone_usage, load, workload, settings, server.version)


def _lone(
    triton: Triton, local: LocalEmbedder, sequences: Sequence[Ids], num_pairs: int, advance: Callable[[], object]
) -> dict[int, _Lone]:
    """Pairs of every length, by length; the lengths take turns too, so that no phase of the machine is one's own."""

    def served(sequence: Ids) -> Callable[[int], float]:
        return lambda _number: _elapsed_ms(lambda: triton.infer("embedder", [sequence]))

    def in_process(sequence: Ids) -> Callable[[int], float]:
        return lambda _number: _elapsed_ms(lambda: local.embed([sequence]))

    contenders: dict[str, Callable[[int], float]] = {}
    for sequence in sequences:
        contenders[f"{SERVED} {len(sequence)}"] = served(sequence)
        contenders[f"{LOCAL} {len(sequence)}"] = in_process(sequence)
    measured = alternate(contenders, rounds=num_pairs, warm_up=WARM_UP_PAIRS, advance=advance)
    return {
        len(sequence): _Lone(
            served_ms=measured[f"{SERVED} {len(sequence)}"], local_ms=measured[f"{LOCAL} {len(sequence)}"]
        )
        for sequence in sequences
    }


def _elapsed_ms(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def _under_load(
    generator: Generator,
    contender: Contender,
    local: LocalEmbedder,
    sequences: tuple[Ids, ...],
    reference: Floats,
    settings: BenchSettings,
    advance: Callable[[], object],
) -> dict[str, list[_Load]]:
    """Rounds of the server, each followed by the same sequences here in as many executions as the server took."""
    served: list[Round] = []

    def through_server(_number: int) -> _Load:
        found = run_round(generator, contender, reference, num_clients=settings.num_clients)
        served.append(found)
        return _Load(per_s=found.per_s, mean_batch=found.mean_batch, usage=found.usage, difference=found.difference)

    def in_process(_number: int) -> _Load:
        batches = np.array_split(np.arange(len(sequences)), min(served[-1].num_executions, len(sequences)))
        meter = Meter(contender.server_pid)
        begin = time.perf_counter()
        parts = [local.embed([sequences[i] for i in batch]) for batch in batches]
        wall_s = time.perf_counter() - begin
        return _Load(
            per_s=len(sequences) / wall_s,
            mean_batch=len(sequences) / len(batches),
            usage=meter.usage(),
            difference=float(np.abs(np.concatenate(parts) - reference).max()),
        )

    return alternate({SERVED: through_server, LOCAL: in_process}, rounds=settings.rounds, advance=advance)


def _findings(
    lone: Mapping[int, _Lone],
    lone_usage: Usage,
    load: Mapping[str, list[_Load]],
    workload: Workload,
    settings: BenchSettings,
    server: str,
) -> Findings:
    ratio = Spread.of(paired_ratios([each.per_s for each in load[SERVED]], [each.per_s for each in load[LOCAL]]))
    added = [pairs.added_ms.median for pairs in lone.values()]
    fast, strong = max(added) <= MOST_ADDED_MS, ratio.median >= LEAST_RATIO
    difference = max(each.difference for found in load.values() for each in found)
    right = difference <= TOLERANCE
    return Findings(
        name="overhead",
        title="What the server adds to the graph that it runs",
        passed=right,
        summary=[
            (
                f"A lone request takes {min(added):.2f} to {max(added):.2f} ms longer through the server "
                f"(goal: at most {MOST_ADDED_MS:g} ms): {_verdict(met=fast)}."
            ),
            (
                f"With {settings.num_clients} clients the server reaches {ratio.median:.0%} of the throughput of "
                f"in-process batches of the same size (goal: at least {LEAST_RATIO:.0%}): {_verdict(met=strong)}."
            ),
            (
                f"Answers differ from the graph's own by at most {difference:.1e} (limit {TOLERANCE:.0e}): "
                f"{'all right' if right else 'WRONG ANSWERS'}."
            ),
        ],
        tables=[_lone_table(lone), _load_table(load, ratio)],
        method=_method(workload, lone_usage, settings),
        server=server,
        figures={
            "lone": {
                str(length): {
                    "served_ms": _latency(pairs.served_ms),
                    "in_process_ms": _latency(pairs.local_ms),
                    "added_ms": asdict(pairs.added_ms),
                }
                for length, pairs in lone.items()
            },
            "load": {
                name: {
                    "requests_per_s": asdict(Spread.of([each.per_s for each in found])),
                    "mean_batch": asdict(Spread.of([each.mean_batch for each in found])),
                    "cores": asdict(Usage.mean([each.usage for each in found])),
                }
                for name, found in load.items()
            },
            "lone_cores": asdict(lone_usage),
            "ratio": asdict(ratio),
            "largest_difference": difference,
            "goals": {"added_ms": fast, "ratio": strong},
        },
    )


def _method(workload: Workload, lone_usage: Usage, settings: BenchSettings) -> list[str]:
    return [
        (
            f"Lone requests: {settings.num_pairs} pairs per length after {WARM_UP_PAIRS} of warm-up, each pair once "
            "through the blocking client and once in process with the same sequence; the added time is the median "
            f"of the differences within pairs, with its quartiles. Lengths take turns. Sequences: {workload.source}. "
            f"Cores meanwhile, client / server / others: {cores(lone_usage)}."
        ),
        (
            f"Load: {settings.num_clients} closed-loop clients in one asyncio process, {settings.num_requests} "
            f"requests of {workload.lengths} a round, serialised beforehand, seed {settings.seed}; then "
            "the same sequences in process, in as many executions as the server had taken. "
            f"{times(settings.rounds, 'round')} in turns after one of warm-up; the ratio is formed within a round."
        ),
        (
            "The in-process session has the options of the model's configuration and, like the server's, threads that "
            "spin within a run and rest after it."
        ),
        "The clients share the cores with the server; in process there are none.",
    ]


def _lone_table(lone: Mapping[int, _Lone]) -> Table:
    return Table(
        title="A lone request",
        columns=[
            "tokens",
            "in process p50 / p90, ms",
            "through the server p50 / p90, ms",
            "added, median (quartiles), ms",
        ],
        rows=[
            [str(length), _p50_p90(pairs.local_ms), _p50_p90(pairs.served_ms), pairs.added_ms.text(2)]
            for length, pairs in lone.items()
        ],
    )


def _load_table(load: Mapping[str, list[_Load]], ratio: Spread) -> Table:
    return Table(
        title="Under load",
        columns=[
            "",
            "mean batch",
            "requests/s, median (min to max)",
            "ratio, median (min to max)",
            "cores: client / server / others",
        ],
        rows=[
            [
                name,
                Spread.of([each.mean_batch for each in found]).text(1),
                Spread.of([each.per_s for each in found]).text(0),
                ratio.text(2) if name == SERVED else "1",
                cores(Usage.mean([each.usage for each in found])),
            ]
            for name, found in load.items()
        ],
    )


def _p50_p90(values: list[float]) -> str:
    return f"{quantile(values, 0.5):.2f} / {quantile(values, 0.9):.2f}"


def _latency(values: list[float]) -> dict[str, float]:
    return {"p50": quantile(values, 0.5), "p90": quantile(values, 0.9)}


def _verdict(*, met: bool) -> str:
    return "met" if met else "MISSED"
