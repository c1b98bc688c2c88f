"""A run that is killed goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skillserve.cli import main
from skillserve.errors import ConfigError
from skillserve.publish import sha256_of
from skillserve_training.checkpoints import Checkpoints

SAME_LOSS = 1e-4
"""The Trainer writes losses down with four decimals; one thread adds up in one order, so nothing else differs."""

EPOCHS = 8


def command(base: Path, data: Path, out: Path) -> list[str]:
    """Arguments of a run of some fifty steps."""
    flags = {
        "--data": data,
        "--base": base,
        "--out": out,
        "--recipe": "sample-embedder",
        "--frozen-layers": 0,
        "--batch-size": 6,
        "--epochs": EPOCHS,
        "--max-tokens": 48,
        "--checkpoint-steps": 3,
        "--precision": "float32",
        "--evals": 4,
    }
    return ["train", "embedder", *(str(word) for pair in flags.items() for word in pair)]


def process(arguments: list[str]) -> subprocess.Popen[bytes]:
    """A run in a process of its own, on one thread as the other tests; pauses leave time to kill it in the middle."""
    program = (
        "import sys, time, torch; torch.set_num_threads(1); from skillserve.cli import main; "
        "from skillserve_training.contrast import Contrast; step = Contrast.backward; "
        "Contrast.backward = lambda *a: (time.sleep(0.05), step(*a))[1]; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.DEVNULL)


def test_a_killed_run_goes_on_and_ends_like_an_undisturbed_one(
    tiny_embedder: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the run that is killed needs a process of its own."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(command(tiny_embedder, tiny_data, whole)) == 0

    doomed = process(command(tiny_embedder, tiny_data, killed))
    checkpoints = tmp_path / "killed.checkpoints"
    while not list(checkpoints.glob("checkpoint-*/trainer_state.json")):
        assert doomed.poll() is None
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1))
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    assert not killed.exists()
    # As if the kill had come while a checkpoint was being written.
    (checkpoints / "checkpoint-1000").mkdir(exist_ok=True)

    capsys.readouterr()
    assert main(command(tiny_embedder, tiny_data, killed)) == 0
    assert "Going on from step" in capsys.readouterr().err
    reports = [json.loads((out / "training" / "report.json").read_text()) for out in (whole, killed)]
    assert reports[0]["resumed_from"] is None
    assert reports[1]["resumed_from"] % 3 == 0
    for curve in ("loss", "learning_rate"):
        one, other = (report["curves"][curve] for report in reports)
        assert len(one) == reports[0]["steps"]
        assert other == pytest.approx(one, abs=SAME_LOSS)
    assert reports[1]["curves"]["holdout_ndcg_at_10"] == reports[0]["curves"]["holdout_ndcg_at_10"]
    assert sha256_of(whole / "model.safetensors") == sha256_of(killed / "model.safetensors")
    assert not checkpoints.exists()


def test_checkpoints_of_another_run_are_refused_and_kept_unless_told_otherwise(tmp_path: Path) -> None:
    out = tmp_path / "out"
    Checkpoints(out, {"data": "a", "settings": {"seed": 1}}, fresh=False)
    kept = Checkpoints(out, {"data": "a", "settings": {"seed": 1}}, fresh=False)
    (kept.folder / "checkpoint-3").mkdir()
    (kept.folder / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3}')
    with pytest.raises(ConfigError, match=r"differs in settings.*--fresh"):
        Checkpoints(out, {"data": "a", "settings": {"seed": 2}}, fresh=False)
    latest = kept.latest()
    assert latest is not None
    assert latest.step == 3
    assert Checkpoints(out, {"data": "b", "settings": {}}, fresh=True).latest() is None
