"""Training in two processes that `torchrun` started is the training in one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SAME_LOSS = 2e-4
"""The same sums in another order, written down with four decimals."""


def train(tmp_path: Path, base: Path, data: Path, num: int, *flags: str) -> list[float]:
    out = tmp_path / f"in-{num}"
    words = ["train", "embedder", "--data", str(data), "--base", str(base), "--out", str(out), "--json"]
    fixed = ["--recipe", "sample-embedder", "--frozen-layers", "0", "--max-tokens", "48", "--precision", "float32"]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num}"] if num > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, "-m", "skillserve", *words, *fixed, *flags],
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(line)["folder"] == str(out)
    losses: list[float] = json.loads((out / "training" / "report.json").read_text())["curves"]["loss"]
    return losses


def test_two_processes_learn_what_one_learns(tiny_embedder: Path, tiny_data: Path, tmp_path: Path) -> None:
    flags = ("--batch-size", "8", "--chunk-size", "3", "--evals", "2", "--epochs", "3")
    one, two = (train(tmp_path, tiny_embedder, tiny_data, num, *flags) for num in (1, 2))
    assert two == pytest.approx(one, abs=SAME_LOSS)
    assert len(one) > 5
