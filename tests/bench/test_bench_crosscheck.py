"""What the other instrument is given and says, and what happens where it cannot run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from skillserve.cli import main
from skillserve.errors import UsageError
from skillserve_bench.scenarios import crosscheck
from skillserve_bench.scenarios.crosscheck import Seen, perf_analyzer_figures, perf_analyzer_input

TOLD = """Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency
8,402.5,31,19012,21044,22500,25001
"""


def test_requests_are_written_without_the_batch_that_it_adds() -> None:
    found = perf_analyzer_input([np.array([101, 7, 102], np.int32), np.array([101, 102], np.int32)])
    assert found["data"][0] == {
        "input_ids": {"content": [101, 7, 102], "shape": [3]},
        "seq_lens": {"content": [3], "shape": [1]},
    }
    assert found["data"][1]["seq_lens"]["content"] == [2]


def test_its_report_is_read_in_ms_and_another_one_refused() -> None:
    assert perf_analyzer_figures(TOLD) == Seen(per_s=402.5, p95_ms=22.5)
    with pytest.raises(UsageError, match="Inferences/Second"):
        perf_analyzer_figures(TOLD.replace("p95 latency", "p95"))
    with pytest.raises(UsageError, match="0 rows"):
        perf_analyzer_figures("")


def script(path: Path, *lines: str) -> list[str]:
    """A program of the shell, as a command."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]), encoding="utf-8")
    path.chmod(0o755)
    return [str(path)]


def test_a_load_that_was_not_steady_is_measured_again_and_not_for_ever(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    unsteady = [f"echo x >> {calls}", "echo Failed to obtain stable measurement. >&2"]
    crosscheck._carry_out(script(tmp_path / "twice", *unsteady, f"test $(wc -l < {calls}) -ge 2 || exit 2"))
    assert calls.read_text() == "x\nx\n"
    with pytest.raises(UsageError, match="3 times in turn: Failed to obtain") as caught:
        crosscheck._carry_out(script(tmp_path / "never", *unsteady, "exit 2"))
    assert "Free the cores" in caught.value.fix
    assert len(calls.read_text().split()) == 5


@pytest.mark.e2e
def test_an_instrument_that_does_not_run_is_an_error_that_says_why(
    capsys: pytest.CaptureFixture[str], packed: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "perf_analyzer"
    broken.write_text("#!/bin/sh\necho libb64.so.0d: cannot open shared object file >&2\nexit 127\n", encoding="utf-8")
    broken.chmod(0o755)
    arguments = ["--repository", packed, "--perf-analyzer", broken, "--rounds", 1, "--seconds", 1, "--tokens", 16]
    assert main(["bench", "crosscheck", *map(str, arguments), "--num-clients", "2", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert "exit code 127, and it said: libb64.so.0d" in error["got"]
    assert "LD_LIBRARY_PATH" in error["fix"]
