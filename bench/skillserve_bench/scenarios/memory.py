"""Whether batch scoring needs constant memory, whatever the size of its input.

Drawn catalogues of several sizes, each embedded by `skillserve score` in a process of its own whose memory is watched.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from skillserve.console import progress
from skillserve.errors import OutputError
from skillserve.settings import BenchSettings
from skillserve_bench.memory_run import MemoryRun, watched
from skillserve_bench.report import Findings, Table

__all__ = ["count_wrong_rows", "measure_memory", "write_catalogue"]

_WORDS = ["log", "query", "deploy", "index", "plan", "agent", "test", "sql", "the", "and", "find", "skill"]
_MOST_BYTES_A_ROW = 16 << 10
"""Input and output before anything is known of a model: 4,096 numbers of 32 bits."""
_ROOM = 1.2
"""Free space wanted, as a multiple of what is expected."""
_EARLY, _LATE = 0.1, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    """A catalogue that was embedded."""

    rows: int
    wall_s: float
    rows_per_s: float
    peak_mib: float
    early_mib: float
    late_mib: float
    input_bytes: int
    output_bytes: int
    num_wrong: int
    """Rows that are missing, there twice, or under another id."""


def measure_memory(repository: Path, *, scratch: Path | None, settings: BenchSettings) -> Findings:
    """Measure, smallest catalogue first; raises OutputError where there is no room, SkillserveError if a run fails."""
    sizes: list[_Size] = []
    wanted = sorted(set(settings.rows))
    with (
        tempfile.TemporaryDirectory(prefix="skillserve-memory-", dir=scratch) as folder,
        progress("catalogues", len(wanted)) as bar,
    ):
        _require_room(Path(folder), wanted[0] * _MOST_BYTES_A_ROW)
        for rows in wanted:
            sizes.append(_measured(rows, repository, Path(folder), seed=settings.seed))
            # The largest one's need, as soon as it is known and before the time for those between is spent.
            a_row = (sizes[0].input_bytes + sizes[0].output_bytes) / wanted[0]
            _require_room(Path(folder), int(wanted[-1] * a_row))
            bar.advance()
    return _findings(sizes, settings)


def _measured(rows: int, repository: Path, scratch: Path, *, seed: int) -> _Size:
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        catalogue, out = Path(place) / "skills.jsonl", Path(place) / "out"
        write_catalogue(catalogue, rows, seed=seed)
        command = [
            *(sys.executable, "-m", "skillserve", "score", "embed", str(catalogue), "--out", str(out), "--json"),
            *("--engine", "direct", "--models", str(repository)),
        ]
        run: MemoryRun = watched(command, Path(place))
        return _Size(
            rows=rows,
            wall_s=run.wall_s,
            rows_per_s=rows / run.wall_s,
            peak_mib=run.peak_mib,
            early_mib=run.at(_EARLY),
            late_mib=run.at(_LATE),
            input_bytes=catalogue.stat().st_size,
            output_bytes=sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
            num_wrong=count_wrong_rows((out / "shards").glob("*.parquet"), rows),
        )


def write_catalogue(path: Path, rows: int, *, seed: int) -> None:
    """Short skills of drawn words under ids by number, a line at a time; the same seed gives the same bytes."""
    rng = random.Random(seed)  # noqa: S311 - words, not cryptography
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            name, description = (" ".join(rng.choices(_WORDS, k=k)) for k in (2, 6))
            file.write(json.dumps({"id": _id(row), "name": name, "description": description}) + "\n")


def count_wrong_rows(shards: Iterable[Path], rows: int) -> int:
    """How many rows of such a catalogue are not in the output exactly once under their id; extra ones count too.

    One byte a row and one batch of a shard are in memory.
    """
    times = np.zeros(rows, np.uint8)
    num_foreign = 0
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(columns=["row", "id"]):
                for row, skill in zip(batch["row"].to_pylist(), batch["id"].to_pylist(), strict=True):
                    if 0 <= row < rows and skill == _id(row):
                        times[row] = min(times[row] + 1, 2)
                    else:
                        num_foreign += 1
    return int(np.count_nonzero(times != 1)) + num_foreign


def _id(row: int) -> str:
    return f"skill-{row:010d}"


def _require_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes * _ROOM:
        raise OutputError(
            f"scratch folder `{folder.parent}`",
            got=f"{free / 2**30:.1f} GiB free",
            wanted=f"{num_bytes * _ROOM / 2**30:.1f} GiB, for the largest catalogue and its vectors",
            fix="Make room, name another folder with --scratch, or fewer --rows.",
        )


def _findings(sizes: list[_Size], settings: BenchSettings) -> Findings:
    smallest, largest = sizes[0], sizes[-1]
    growth = largest.peak_mib / smallest.peak_mib
    constant = growth <= settings.most_growth
    num_wrong = sum(size.num_wrong for size in sizes)
    return Findings(
        name="memory",
        title="Whether batch scoring needs constant memory",
        passed=constant and not num_wrong,
        summary=[
            (
                f"{largest.rows:,} skills need {growth:.2f} times the peak memory of {smallest.rows:,} "
                f"(limit {settings.most_growth:.2f}): {'constant' if constant else 'it GROWS with the input'}."
            ),
            f"{f'{num_wrong} rows are NOT' if num_wrong else 'Every row is'} in the output exactly once.",
        ],
        tables=[
            Table(
                title="Catalogues embedded",
                columns=[
                    "skills",
                    "s",
                    "skills/s",
                    "peak MiB",
                    f"MiB at {_EARLY:.0%}",
                    f"MiB at {_LATE:.0%}",
                    "ratio of peaks",
                    "output bytes",
                ],
                rows=[
                    [
                        f"{size.rows:,}",
                        f"{size.wall_s:.1f}",
                        f"{size.rows_per_s:,.0f}",
                        *(f"{mib:,.0f}" for mib in (size.peak_mib, size.early_mib, size.late_mib)),
                        f"{size.peak_mib / smallest.peak_mib:.2f}",
                        f"{size.output_bytes:,}",
                    ]
                    for size in sizes
                ],
            )
        ],
        method=[
            (
                "Catalogues of short skills, drawn by seed and written a line at a time, are embedded by `skillserve "
                "score embed --engine direct` in a process of its own; seconds include its start."
            ),
            (
                "Resident memory of the process and its descendants, ten times a second; the peak is the largest of "
                "these and of what the kernel notes for the main process. Shares are of the run's time."
            ),
            "Every row of the output is read again and its id compared with the one that was written.",
        ],
        server="no server",
        figures={
            "growth": growth,
            "most_growth": settings.most_growth,
            "sizes": [{**asdict(size), "peak_ratio": size.peak_mib / smallest.peak_mib} for size in sizes],
        },
    )
