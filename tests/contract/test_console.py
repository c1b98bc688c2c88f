"""Progress where nobody watches: lines instead of a bar."""

from __future__ import annotations

import pytest

from skillserve import console


def test_a_log_file_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 20))  # every look at the clock is 20 s later than the last one
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    with console.progress("embed", 4) as bar:
        for step in range(4):
            bar.advance(note=f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" after ")[0] for line in lines] == ["embed 2/4", "embed 4/4"]
    assert lines[1].endswith("loss 3")


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("embed", None) as bar:
        bar.advance()
    assert capsys.readouterr().err == ""
