"""Calibrate through the real server, search, abstain: the whole story by real commands."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skillserve.skillfile import read_queries
from skillserve_client import open_bundle

pytestmark = pytest.mark.e2e


def test_a_calibrated_bundle_abstains(
    server: Any,
    bundles: Path,
    sample_data: Path,
    skillserve: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """The models are random, so they can tell little apart; the promise about false injection holds all the same."""
    root = tmp_path / "bundles"
    shutil.copytree(bundles, root)
    where = ("--bundles", str(root), "--url", server.url, "--json")
    queries = {name: sample_data / "queries" / f"{name}.jsonl" for name in ("train", "train-none", "test", "test-none")}
    uncalibrated = json.loads(skillserve("search", "find a slow sql query", *where).stdout)
    assert uncalibrated["probability"] is None
    assert any("calibrate" in note for note in uncalibrated["notes"])

    fit = ("--requests", str(queries["train"]), "--none", str(queries["train-none"]), "--rerank-depth", "5")
    check = ("--check", str(queries["test"]), "--check-none", str(queries["test-none"]), "--num-resamples", "100")
    result = json.loads(skillserve("calibrate", *fit, *check, "--report", str(tmp_path / "report"), *where).stdout)
    assert set(result["calibration"]["stages"]) == set(result["check"]["stages"]) == {"rerank", "embed"}
    assert result["check"]["num_none"] == len(read_queries(queries["test-none"]))
    assert (tmp_path / "report" / "calibration.png").stat().st_size > 10_000
    assert open_bundle(root).manifest.parent == uncalibrated["bundle"]

    none = ("search", "--file", str(queries["train-none"]), "--rerank-depth", "5", *where)
    answers = [json.loads(row) for row in skillserve(*none).stdout.splitlines()]
    abstained = [answer for answer in answers if answer["status"] == "abstained"]
    assert len(abstained) > len(answers) / 2
    assert all(answer["reranked"] and not answer["hits"] and answer["near_misses"] for answer in abstained)
    kept = [json.loads(row) for row in skillserve(*none, "--no-abstain").stdout.splitlines()]
    assert all(answer["status"] == "ok" and answer["hits"] for answer in kept)
    assert [answer["probability"] for answer in kept] == pytest.approx([answer["probability"] for answer in answers])
    again = json.loads(skillserve("calibrate", *fit, "--force", *where).stdout)
    assert again["status"] == "published"
    cuts = [{name: stage["cut"] for name, stage in each["calibration"]["stages"].items()} for each in (again, result)]
    assert cuts[0] == pytest.approx(cuts[1], abs=1e-2)
