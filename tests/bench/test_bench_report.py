"""The report as Markdown and JSON, and what it says about machine and command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from skillserve.errors import ConfigError
from skillserve.machine import num_cores
from skillserve_bench.environment import Environment, observe, portable_command
from skillserve_bench.processor import Meter, Usage
from skillserve_bench.report import Findings, Report, Table, cores, deliver, markdown

ENVIRONMENT = Environment(
    date="2026-01-31",
    commit="0123456789ab",
    processor="Abacus 9000",
    num_cores=2,
    memory_gib=23.5,
    system="Linux 6.0 x86_64",
    python="3.11.7",
    packages={"skillserve": "0.1.0", "numpy": "1.26.4"},
    niceness=0,
    real_time=False,
)
FINDINGS = Findings(
    name="batching",
    title="A measurement",
    passed=True,
    summary=["Packed is faster.", "Answers are right."],
    tables=[Table(title="Throughput", columns=["layout", "requests/s"], rows=[["packed", "353"], ["a|b", "160"]])],
    method=["In turns."],
    server="Triton 2.51.0 (embedded)",
    figures={"packed": 353.0},
)
REPORT = Report(findings=FINDINGS, environment=ENVIRONMENT, command="skillserve bench batching", notes=("Quiet.",))

GOLDEN = """\
# A measurement

Packed is faster.
Answers are right.

## Throughput

| layout | requests/s |
| --- | ---: |
| packed | 353 |
| a\\|b | 160 |

## How it was measured

- In turns.
- Quiet.

## Where

- Date: 2026-01-31; commit 0123456789ab
- Machine: Abacus 9000, 2 cores, 23.5 GiB of memory, Linux 6.0 x86_64
- Versions: Triton 2.51.0 (embedded), Python 3.11.7, skillserve 0.1.0, numpy 1.26.4

```
skillserve bench batching
```
"""


def test_a_report_reads_like_this() -> None:
    assert markdown(REPORT) == GOLDEN


def test_a_report_is_written_where_it_was_asked_for_and_json_stays_alone_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "docs" / "batching.md"
    deliver(REPORT, files=[file], as_json=True)
    assert file.read_text() == GOLDEN
    printed = json.loads(capsys.readouterr().out)
    assert printed["benchmark"] == "batching"
    assert printed["passed"] is True
    assert printed["figures"] == {"packed": 353.0}
    assert printed["environment"]["num_cores"] == 2


def test_a_report_that_could_not_be_written_comes_with_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.md").mkdir()
    with pytest.raises(ConfigError, match=r"report\.md") as raised:
        deliver(REPORT, files=[tmp_path / "report.md"], as_json=True)
    assert capsys.readouterr().out == ""
    assert raised.value.findings["figures"] == {"packed": 353.0}


def test_people_see_the_summary_and_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    deliver(REPORT, files=[], as_json=False)
    printed = capsys.readouterr().out
    assert "Packed is faster." in printed
    assert "353" in printed


def test_cells_name_whose_the_cores_were() -> None:
    assert cores(Usage(client=0.031, server=0.9, others=0.0)) == "3% / 90% / 0%"
    assert cores(Usage(client=0.5, server=None, others=None)) == "50% / ? / ?"
    assert cores(Usage(client=0.01, server=0.8, others=0.02, search=0.16)) == "1% / 16% + 80% / 2%"
    assert cores(Usage(client=0.01, server=None, others=None, search=0.16)) == "1% / 16% + ? / ?"


def test_the_command_of_a_report_names_no_disk_of_its_author() -> None:
    arguments = [
        "bench",
        "quality",
        "--data",
        "/home/ann/github-skills",
        "--out=/tmp/x.md",
        "--note",
        "two words",
        "docs/a",
    ]
    assert (
        portable_command(arguments)
        == "skillserve bench quality --data <github-skills> --out=<x.md> --note 'two words' docs/a"
    )


def test_the_environment_is_this_machine_today() -> None:
    seen = observe(["tokenizers", "no-such-package"])
    assert seen.processor
    assert seen.num_cores == num_cores()
    assert seen.memory_gib > 0
    assert seen.packages["numpy"] == np.__version__
    assert seen.packages["no-such-package"] == "not installed"
    json.dumps(seen.to_dict())


def test_a_busy_process_is_found_in_the_share_of_its_tree() -> None:
    """The server's share must include what its stubs burn; here the child of a child burns one core."""
    burner = "print(flush=True)\nwhile True: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burner!r}], timeout=30)"
    process = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it burns
        meter = Meter(process.pid)
        time.sleep(0.6)
        usage = meter.usage()
    finally:
        os.killpg(process.pid, 9)
        process.communicate()
    assert usage.server is not None
    assert usage.server > 0.05
    assert usage.client < usage.server


def test_an_unknown_server_leaves_shares_unknown() -> None:
    usage = Meter(None).usage()
    assert usage.server is None
    assert usage.others is None
    mean = Usage.mean([usage, Usage(client=0.2, server=0.4, others=0.1)])
    assert mean.server == 0.4
