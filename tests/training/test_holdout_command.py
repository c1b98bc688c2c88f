"""Requests for calibration: those that training keeps away from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skillserve.cli import main
from skillserve.skillfile import read_queries
from skillserve_training import hold_out, read_training_data


def test_the_held_out_requests_are_written_with_their_skills(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "held.jsonl"
    command = ["train", "holdout", "--data", str(tiny_data), "--holdout-share", "0.3", "--out", str(out), "--json"]
    assert main(command) == 0
    _, held_out = hold_out(read_training_data(tiny_data), share=0.3)
    written = read_queries(out)
    assert [query.text for query in written] == [query.text for query in held_out.queries]
    assert {query.id: set(query.skill_ids) for query in written} == dict(held_out.golds)
    told = json.loads(capsys.readouterr().out)
    assert (told["requests"], told["part"]) == (len(written), held_out.part_digest)


def test_nothing_held_out_is_an_error_and_no_file(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "held.jsonl"
    assert main(["train", "holdout", "--data", str(tiny_data), "--holdout-share", "0", "--out", str(out)]) == 2
    assert "--holdout-share 0.1" in capsys.readouterr().err
    assert not out.exists()
