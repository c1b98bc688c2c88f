"""Does another instrument see what ours sees? NVIDIA's `perf_analyzer` and our load generator on one server, in turns.

Both keep as many requests in flight, one sequence of the same length each, and count answers and the 95th percentile of
latency. Nobody here wrote `perf_analyzer`: where the two agree, neither invents its figures.
"""

from __future__ import annotations

import csv
import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from skillserve.console import progress
from skillserve.errors import ServerError, UsageError
from skillserve.settings import BenchSettings
from skillserve.tensors import INPUT_IDS, SEQ_LENS, Ids
from skillserve_bench.alternation import alternate
from skillserve_bench.figures import Spread, paired_ratios, times
from skillserve_bench.lengths import SHORT
from skillserve_bench.load.generator import Generator, num_workers_for
from skillserve_bench.load.target import InferTarget
from skillserve_bench.measurement import Contender
from skillserve_bench.messages import messages
from skillserve_bench.report import Findings, Table
from skillserve_bench.scenarios.latency import Stand
from skillserve_bench.server import Server
from skillserve_bench.workload import make_workload
from skillserve_client import ServedModel, Triton

__all__ = ["MOST_APART", "Seen", "perf_analyzer_figures", "perf_analyzer_input", "run_crosscheck"]

OURS, THEIRS = "bench latency", "perf_analyzer"

MOST_APART = 0.10
"""Of a figure's ratio from 1, at the median of the rounds."""

_NUM_SEQUENCES = 200
"""Different ones that `perf_analyzer` goes through again and again; nothing is cached on the way."""
_WINDOW_MS = 5_000
_STABLE_PERCENT = 20
_MOST_WINDOWS = 10
_TRIES = 3
_UNSTEADY = "Failed to obtain stable measurement"
"""It measures windows until three in a row agree so far, and gives up after so many. On shared cores its own 10 % are
often not reached; what agrees in the end is for the rounds to say."""
_LONGEST_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an instrument says of one load."""

    per_s: float
    p95_ms: float


class _Drawn:
    """Sequences of one length, without end, for our generator."""

    def __init__(self, model: ServedModel, folder: Path, tokens: int, seed: int) -> None:
        self._model, self._folder, self._tokens, self._seed = model, folder, tokens, seed

    def take(self, num: int, *, each: int = 1) -> list[bytes]:
        """The next `num` requests of `each` sequences."""
        self._seed += 1
        drawn = make_workload(self._folder, [self._tokens] * (num * each), data=None, seed=self._seed).sequences
        return messages(self._model, [drawn[i : i + each] for i in range(0, len(drawn), each)])


def run_crosscheck(
    server: Server, *, repository: Path, perf_analyzer: Path, tokens: int, seconds: float, settings: BenchSettings
) -> Findings:
    """Drive the embedder with both; raises UsageError if the other instrument does not run, ServerError."""
    with Triton(server.reached()) as triton:
        model = triton.served("embedder")
    if model.layout != "packed":
        raise UsageError(
            f"model `{model.name}`",
            got=f"layout {model.layout}",
            wanted="packed, which is what requests are made for",
            fix="Export it so: skillserve export WEIGHTS",
        )
    folder = repository / model.name
    workload = make_workload(folder, [tokens] * _NUM_SEQUENCES, data=None, seed=settings.seed)
    contender = Contender(
        name=OURS,
        target=InferTarget(server.reached(), model),
        supply=_Drawn(model, folder, tokens, settings.seed),
        server_pid=server.pid,
    )
    with (
        tempfile.TemporaryDirectory(prefix="skillserve-crosscheck-") as scratch,
        Generator(num_workers=num_workers_for(settings.num_workers)) as generator,
        progress("crosscheck", 2 * (settings.rounds + 1)) as bar,
    ):
        sent = Path(scratch) / "requests.json"
        sent.write_text(json.dumps(perf_analyzer_input(workload.sequences)), encoding="utf-8")

        def ours(_number: int) -> Seen:
            stand = Stand(
                generator, contender, settings, length=replace(SHORT, run_s=seconds, rounds=1, least_passes=0)
            )
            results = stand.run(["offline"])
            if generator.interrupted:
                raise KeyboardInterrupt
            found = results.measurements[-1] if results.measurements else None
            problems = [*([results.problem] if results.problem else []), *(found.objections if found else [])]
            if problems or found is None:
                raise ServerError(
                    f"our load on {server.url}",
                    got="; ".join(problems) or "no measurement",
                    wanted="a valid run",
                    fix="See the server's log, and free the cores.",
                )
            return Seen(per_s=found.per_s.value, p95_ms=found.latency_ms(0.95).value)

        def theirs(number: int) -> Seen:
            told = Path(scratch) / f"told{number}.csv"
            command = [
                *(str(perf_analyzer), "-m", model.name, "-x", model.version, "-u", server.url, "-i", "grpc"),
                *("--sync", "--concurrency-range", f"{settings.num_clients}:{settings.num_clients}", "-b", "1"),
                *("-p", str(_WINDOW_MS), "-r", str(_MOST_WINDOWS), "-s", str(_STABLE_PERCENT)),
                *("--percentile", "95"),
                *("--input-data", str(sent), "-f", str(told)),
            ]
            _carry_out(command)
            return perf_analyzer_figures(told.read_text(encoding="utf-8"))

        seen = alternate({OURS: ours, THEIRS: theirs}, rounds=settings.rounds, advance=bar.advance)
    return _findings(seen, tokens, server, settings)


def perf_analyzer_input(sequences: Sequence[Ids]) -> dict[str, list[dict[str, dict[str, list[int]]]]]:
    """Requests of one sequence each, in its format; shapes are without the leading 1, which it adds as a batch."""
    return {
        "data": [
            {
                INPUT_IDS: {"content": sequence.tolist(), "shape": [len(sequence)]},
                SEQ_LENS: {"content": [len(sequence)], "shape": [1]},
            }
            for sequence in sequences
        ]
    }


def perf_analyzer_figures(told: str) -> Seen:
    """Its CSV report of one load; raises UsageError if that is something else."""
    rows = list(csv.DictReader(told.splitlines()))
    try:
        (row,) = rows
        return Seen(per_s=float(row["Inferences/Second"]), p95_ms=float(row["p95 latency"]) / 1e3)
    except (KeyError, ValueError) as error:
        raise UsageError(
            "report of perf_analyzer",
            got=f"{len(rows)} rows, {type(error).__name__}: {error}",
            wanted="one row with Inferences/Second and p95 latency",
            fix="Use the one in the wheel tritonclient 2.40.0: pip download --no-deps tritonclient==2.40.0",
        ) from error


def _carry_out(command: Sequence[str]) -> None:
    """Run it; where it found no steady load, once more, since other work on the machine comes and goes."""
    for _ in range(_TRIES):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LONGEST_S)  # noqa: S603, RUF100
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _failed(command, str(error)) from error
        if not done.returncode:
            return
        last = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        if _UNSTEADY not in last:
            raise _failed(command, f"exit code {done.returncode}, and it said: {last}")
    raise _failed(command, f"{_TRIES} times in turn: {last}", fix="Free the cores of other work, and run it again.")


def _failed(
    command: Sequence[str],
    got: str,
    *,
    fix: str = "Try it by hand: its libraries (libb64, libcudart.so.12) must be where LD_LIBRARY_PATH says.",
) -> UsageError:
    return UsageError(f"`{command[0]}`", got=got, wanted="perf_analyzer, which runs to its end", fix=fix)


def _findings(seen: dict[str, list[Seen]], tokens: int, server: Server, settings: BenchSettings) -> Findings:
    figures = {
        "requests/s": {name: [each.per_s for each in found] for name, found in seen.items()},
        "p95, ms": {name: [each.p95_ms for each in found] for name, found in seen.items()},
    }
    ratios = {what: Spread.of(paired_ratios(found[OURS], found[THEIRS])) for what, found in figures.items()}
    apart = {what: abs(ratio.median - 1) for what, ratio in ratios.items()}
    return Findings(
        name="crosscheck",
        title="The load generator beside NVIDIA's perf_analyzer",
        passed=all(each <= MOST_APART for each in apart.values()),
        summary=[
            f"{what}: ours is {ratio.text(3)} of perf_analyzer's (limit {MOST_APART:.0%} apart): "
            f"{'agreed' if apart[what] <= MOST_APART else 'NOT agreed'}."
            for what, ratio in ratios.items()
        ],
        tables=[
            Table(
                title="The same load, seen by both",
                columns=["", *(f"{what}, median (min to max)" for what in figures)],
                rows=[[name, *(Spread.of(found[name]).text(1) for found in figures.values())] for name in seen],
            )
        ],
        method=[
            (
                f"{times(settings.rounds, 'round')} in turns after one of warm-up, {settings.num_clients} requests of "
                f"one sequence of {tokens} tokens in flight over gRPC; ratios within a round."
            ),
            (
                "Both measure from sending to answer and leave their warm-up out; a closed loop has no schedule that a "
                "request could miss."
            ),
        ],
        server=server.version,
        figures={
            "tokens": tokens,
            "seen": {name: [asdict(each) for each in found] for name, found in seen.items()},
            "ratio": {what: asdict(ratio) for what, ratio in ratios.items()},
        },
    )
