"""The whole line as one command, on a tiny random model: what `make demo` does, in seconds."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from skillserve.demo import REQUESTS

pytestmark = pytest.mark.e2e


def test_the_demo_runs_and_runs_again_from_what_is_current(
    tiny_embedder: Path, sample_data: Path, tmp_path: Path, skillserve: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Train → export → serve → index → calibrate → search; the second run trains and exports nothing."""
    arguments = ("demo", "--data", str(sample_data), "--base", str(tiny_embedder), "--out", str(tmp_path / "demo"))
    limits = {
        "SKILLSERVE_TRAIN_MAX_TOKENS": "48",
        "SKILLSERVE_TRAIN_EPOCHS": "0.2",
        "SKILLSERVE_TRAIN_FROZEN_LAYERS": "0",
    }
    first = skillserve(*arguments, **limits)
    assert "current:" not in first.stderr
    for name in REQUESTS:
        assert f"{name}:" in first.stdout
    assert first.stdout.count("ms: tokenise") == len(REQUESTS)
    assert "bundle" in first.stdout
    assert list((tmp_path / "demo" / "bundles").glob("*/token_embeddings.npz"))
    second = skillserve(*arguments, **limits)
    assert second.stderr.count("current:") == 4
    assert second.stdout.count("ms: tokenise") == len(REQUESTS)


def test_a_folder_without_data_is_refused(
    tmp_path: Path, skillserve: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    refused = skillserve("demo", "--data", str(tmp_path), "--out", str(tmp_path / "demo"), check=False)
    assert refused.returncode == 2
    assert "make demo" in refused.stderr
