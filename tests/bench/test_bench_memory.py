"""Memory of batch runs: the watched process, the check of the output, and one small real measurement."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skillserve.cli import main
from skillserve.errors import SkillserveError
from skillserve_bench.memory_run import watched
from skillserve_bench.scenarios.memory import count_wrong_rows, write_catalogue

_MIB = 1 << 20


def test_memory_that_is_held_only_for_a_moment_is_in_the_peak(tmp_path: Path) -> None:
    """And what this process holds is not, though the kernel counts it to a child that it forks."""
    held = bytearray(512 * _MIB)
    script = "import json, time; x = bytearray(96 << 20); del x; time.sleep(0.3); print(json.dumps({'end': 1}))"
    run = watched([sys.executable, "-c", script], tmp_path)
    assert 96 < run.peak_mib < 300
    assert run.at(0.9) < 96
    assert run.at(1.0) == run.samples_mib[-1]
    assert run.outcome == {"end": 1}
    assert len(held) == 512 * _MIB


def test_a_process_on_its_way_out_is_no_sample_of_the_run(tmp_path: Path) -> None:
    """Its first thread has gone, and with it its memory as Linux tells it, long before it can be waited for."""
    script = """
import ctypes, json, os, threading, time

def outlast():
    time.sleep(0.6)
    os._exit(0)

time.sleep(0.3)
print(json.dumps({"end": 1}), flush=True)
threading.Thread(target=outlast).start()
ctypes.CDLL(None).pthread_exit(None)
"""
    run = watched([sys.executable, "-c", script], tmp_path)
    assert run.wall_s > 0.9
    assert min(run.samples_mib) > 0
    assert run.at(0.9) == run.samples_mib[-1]


def test_a_run_that_fails_is_an_error_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(SkillserveError, match="exit code 3, no room"):
        watched([sys.executable, "-c", "import sys; print('no room', file=sys.stderr); sys.exit(3)"], tmp_path)


def test_catalogues_of_one_seed_are_equal_and_begin_alike(tmp_path: Path) -> None:
    for name, rows, seed in (("a", 50, 1), ("b", 50, 1), ("longer", 60, 1), ("other", 50, 2)):
        write_catalogue(tmp_path / name, rows, seed=seed)
    a, b, longer, other = ((tmp_path / name).read_text() for name in ("a", "b", "longer", "other"))
    assert a == b != other
    assert longer.startswith(a)
    ids = [json.loads(line)["id"] for line in longer.splitlines()]
    assert len(set(ids)) == 60


@pytest.mark.parametrize(
    ("found", "num_wrong"),
    [
        ([0, 1, 2, 3], 0),
        ([3, 0, 2, 1], 0),
        ([0, 1, 3], 1),
        ([0, 1, 2, 2, 3], 1),
        ([0, 1, 2, 3, 4], 1),
        ([0, 0, 0, 3], 3),
    ],
)
def test_rows_that_are_missing_there_twice_or_foreign_are_counted(
    tmp_path: Path, found: list[int], num_wrong: int
) -> None:
    half = len(found) // 2
    for name, rows in (("0", found[:half]), ("1", found[half:])):
        table = pa.table({"row": rows, "id": [f"skill-{row:010d}" for row in rows]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assert count_wrong_rows(tmp_path.glob("*.parquet"), 4) == num_wrong


def test_a_row_under_another_ones_id_is_wrong(tmp_path: Path) -> None:
    pq.write_table(pa.table({"row": [0, 1], "id": ["skill-0000000000"] * 2}), tmp_path / "0.parquet")
    assert count_wrong_rows(tmp_path.glob("*"), 2) == 2  # row 1 is missing, and somebody else has its place


def test_one_size_alone_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "memory", "--repository", str(tmp_path), "--rows", "10", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["subject"] == "setting --rows"


def test_catalogues_are_embedded_and_their_memory_compared(
    capsys: pytest.CaptureFixture[str], packed: Path, tmp_path: Path
) -> None:
    scratch, report = tmp_path / "scratch", tmp_path / "memory.md"
    scratch.mkdir()
    arguments = [
        "--repository",
        packed,
        "--rows",
        "300,100",
        "--most-growth",
        "2",
        "--scratch",
        scratch,
        "--out",
        report,
    ]
    code = main(["bench", "memory", *map(str, arguments), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0, found
    small, large = found["figures"]["sizes"]
    assert (small["rows"], large["rows"]) == (100, 300)
    assert small["peak_ratio"] == 1.0
    assert found["figures"]["growth"] == pytest.approx(large["peak_mib"] / small["peak_mib"])
    assert small["num_wrong"] == large["num_wrong"] == 0
    assert large["peak_mib"] >= large["late_mib"] > 0
    assert large["output_bytes"] > small["output_bytes"] > 0
    assert not list(scratch.iterdir())
    assert "| 300 |" in report.read_text()
