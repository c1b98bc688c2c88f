"""Training in two processes that `torchrun` started is the training in one."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from skillserve.card import read_card
from skillserve.cli import main

SAME_LOSS = 2e-4
"""The same sums in another order, written down with four decimals."""
SAME_WEIGHTS = 1e-4
"""Largest distance between the weights of two runs, as a share of the way that one went from its base; seen: 3e-6.

Nearly all of it lies in biases of keys. Their gradients are nothing but rounding, and the optimiser divides by that."""


def train(role: str, out: Path, base: Path, data: Path, num: int, *flags: str) -> list[float]:
    """Losses of a run in so many processes; one is this one, which is quicker than to start another."""
    words = ["train", role, "--data", str(data), "--base", str(base), "--out", str(out), "--json"]
    fixed = ["--recipe", f"sample-{role}", "--frozen-layers", "0", "--max-tokens", "48", "--precision", "float32"]
    told = _here([*words, *fixed, *flags]) if num == 1 else _launched(num, [*words, *fixed, *flags])
    (line,) = [line for line in told.splitlines() if line.startswith("{")]
    assert json.loads(line)["folder"] == str(out)
    losses: list[float] = json.loads((out / "training" / "report.json").read_text())["curves"]["loss"]
    return losses


def _here(arguments: list[str]) -> str:
    with redirect_stdout(io.StringIO()) as told:
        assert main(arguments) == 0
    return told.getvalue()


def _launched(num: int, arguments: list[str]) -> str:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num}"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "skillserve", *arguments],
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def distance(one: Path, other: Path) -> float:
    """Euclidean, over all weights that both folders hold."""
    left, right = (
        {name.removeprefix("bert."): weight for name, weight in load_file(folder / "model.safetensors").items()}
        for folder in (one, other)
    )
    return float(torch.cat([(left[name] - right[name]).flatten() for name in left.keys() & right.keys()]).norm())


def test_two_processes_learn_what_one_learns(tiny_embedder: Path, tiny_data: Path, tmp_path: Path) -> None:
    flags = ("--batch-size", "8", "--chunk-size", "3", "--evals", "2", "--epochs", "3")
    one, two = (train("embedder", tmp_path / f"in-{num}", tiny_embedder, tiny_data, num, *flags) for num in (1, 2))
    assert two == pytest.approx(one, abs=SAME_LOSS)
    assert len(one) > 5


def test_two_processes_learn_the_reranker_that_one_learns(tiny_embedder: Path, tiny_data: Path, tmp_path: Path) -> None:
    """From a head that each process draws, beside first-stage scores that each computes, in chunks of one list."""
    flags = ["--embedder", str(tiny_embedder), "--similarity-weight", "3", "--lexical-weight", "0.4"]
    flags += ["--batch-size", "8", "--chunk-size", "4", "--evals", "2", "--epochs", "3"]
    flags += ["--interaction", "full", "--learning-rate", "3e-4"]
    folders = [tmp_path / f"in-{num}" for num in (1, 2)]
    one, two = (
        train("reranker", folder, tiny_embedder, tiny_data, num, *flags) for num, folder in enumerate(folders, 1)
    )
    assert two == pytest.approx(one, abs=SAME_LOSS)
    assert len(one) > 5
    assert distance(*folders) < SAME_WEIGHTS * distance(folders[0], tiny_embedder)
    found, wanted = (read_card(folder, verify_weights=True) for folder in reversed(folders))
    assert found.training["processes"] == 2
    assert found.similarity_weight == wanted.similarity_weight
    assert found.training["holdout_ndcg_at_10"] == wanted.training["holdout_ndcg_at_10"]
