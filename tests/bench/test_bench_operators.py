"""A profile's time is shared out among operators and layers, every microsecond once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from skillserve_bench.speed.operators import OUTSIDE, read_profile


class Recorder:
    """Writes events as ONNX Runtime does: bodies before the operator that they belong to, with its own times."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.now = 100

    def node(self, kind: str, us: int) -> None:
        """One execution of an operator."""
        self._add(kind, self.now, us)
        self.now += us

    def loop(self, *body: tuple[str, int], overhead: int) -> None:
        """A loop with its body."""
        begin = self.now
        self.now += overhead
        for kind, us in body:
            self.node(kind, us)
        self._add("Loop", begin, self.now - begin)

    def run(self, begin: int, us: int) -> None:
        """One run of the graph around what was recorded."""
        self.events.append({"cat": "Session", "name": "model_run", "ts": begin, "dur": us})

    def _add(self, kind: str, begin: int, us: int) -> None:
        event = {"cat": "Node", "name": f"n{len(self.events)}_kernel_time", "ts": begin, "dur": us}
        self.events.append(event | {"args": {"op_name": kind}})


def record_layer(recorder: Recorder, *, in_a_loop: bool) -> None:
    """Query, key, value; attention; output, norm; up, down, norm: 100 µs."""
    for kind in ("QuantizeLinear", "MatMulInteger", "MatMulInteger", "MatMulInteger"):
        recorder.node(kind, 10)
    if in_a_loop:
        recorder.loop(("MatMul", 8), ("Softmax", 4), ("MatMul", 6), overhead=2)
    else:
        for kind, us in (("MatMul", 10), ("Softmax", 4), ("MatMul", 6)):
            recorder.node(kind, us)
    for kind, us in (("Gemm", 9), ("LayerNormalization", 1), ("Gemm", 15), ("Gemm", 10), ("Add", 3)):
        recorder.node(kind, us)
    recorder.node("LayerNormalization", 2)


@pytest.mark.parametrize("in_a_loop", [True, False])
def test_layers_are_told_apart_by_attention(tmp_path: Path, *, in_a_loop: bool) -> None:
    recorder = Recorder()
    for _ in range(2):
        begin = recorder.now
        recorder.node("Gather", 20)
        recorder.node("LayerNormalization", 5)
        for _ in range(3):
            record_layer(recorder, in_a_loop=in_a_loop)
        recorder.loop(("ReduceMean", 7), overhead=3)
        recorder.node("Gemm", 5)
        recorder.run(begin, recorder.now - begin + 60)
        recorder.now += 1_000
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(recorder.events))
    found = read_profile(path, skip_runs=1)
    assert found.num_layers == 3
    assert found.wall_us == 400
    for layer in range(3):
        assert found.share(layer, None) == pytest.approx(100 / 400)
        assert found.share(layer, "MatMulInteger") == pytest.approx(30 / 400)
        assert found.share(layer, "LayerNormalization") == pytest.approx(3 / 400)
    assert found.share(OUTSIDE, None) == pytest.approx(40 / 400)
    assert found.share(None, "ReduceMean in a loop") == pytest.approx(7 / 400)
    assert found.share(None, "Loop") == pytest.approx((3 + (6 if in_a_loop else 0)) / 400)
    assert found.share(None, None) == pytest.approx(340 / 400)
    assert found.kinds[0] == "Gemm"


def test_a_profile_without_a_run_behind_the_warm_up_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps([{"cat": "Session", "name": "model_run", "ts": 1, "dur": 2}]))
    with pytest.raises(ValueError, match="1 runs, of which 1"):
        read_profile(path, skip_runs=1)
