"""Figures, goals and checks, from measurements that are known."""

from __future__ import annotations

import numpy as np
import pytest

from skillserve.tensors import Precision
from skillserve_bench.processor import Usage
from skillserve_bench.speed.check import Agreement, agreement
from skillserve_bench.speed.contenders import Contender, Kind, Pass
from skillserve_bench.speed.flops import Flops
from skillserve_bench.speed.goals import goals
from skillserve_bench.speed.outcome import Limit, Line, Outcome
from skillserve_bench.speed.peers import PEER_NAMES
from skillserve_bench.speed.tables import outcome_figures, outcome_tables
from skillserve_client.wire import Floats

QUIET = Usage(client=1.0, server=0.0, others=0.0)


def line(name: str, kind: Kind, precision: Precision, run_s: list[float], *, ndcg: float = 70.0) -> Line:
    """A contender that took so long for ten sequences, each round."""

    def refuse(_part: object) -> Pass:
        raise AssertionError("nothing is measured here")

    tokenise_s = {"packed": 1.0, "padded": 1.0, "served": None, "peer": 0.0}[kind]
    rows: Floats = np.zeros((10, 3), np.float32)
    return Line(
        contender=Contender(name=name, kind=kind, precision=precision, measure=refuse),
        passes=[Pass(rows=rows, run_s=each, tokenise_s=tokenise_s, usage=QUIET) for each in run_s],
        agreement=Agreement(0.9999999, 1.0),
        ndcg=ndcg,
    )


def outcome(*lines: Line, absent: dict[str, str] | None = None) -> Outcome:
    """Two rounds of 100 operations in linear layers and 20 in attention."""
    return Outcome(
        role="embedder",
        lines={each.contender.name: each for each in lines},
        absent=absent or {},
        flops=[Flops(100.0, 20.0), Flops(100.0, 20.0)],
        rates={"onnxruntime fp32": [50.0, 60.0], "torch fp32": [40.0, 70.0], "onnxruntime int8": [120.0, 120.0]},
        num_sequences=20,
        at_once=512,
        mean_tokens=12.0,
        reference_ndcg=70.0,
    )


FP32 = line("packed fp32", "packed", "fp32", [3.0, 4.0])
INT8 = line("packed int8", "packed", "int8", [2.0, 4.0], ndcg=69.9)
TORCH = line(PEER_NAMES["torch"], "peer", "fp32", [24.0, 40.0])
QUANTISED = line(PEER_NAMES["onnx-int8"], "peer", "int8", [5.0, 6.0], ndcg=69.0)
TRITON = line("Triton fp32, 32 clients", "served", "fp32", [4.0, 4.0])


def test_the_limit_is_that_of_the_kernels_that_are_faster_in_the_median() -> None:
    found = outcome(FP32).limit("fp32")
    assert found == Limit(kernels="onnxruntime fp32", rates=[50.0, 60.0])
    assert outcome(FP32).limit("bf16") is None


def test_a_share_is_formed_within_its_round_and_may_count_attention_in_fp32() -> None:
    plain = outcome(FP32, INT8)
    share = plain.share(FP32)
    assert share is not None
    assert (share.greatest, share.least) == (pytest.approx(120 / 50 / 3), pytest.approx(120 / 60 / 4))
    whole, apart = plain.share(INT8), plain.share(INT8, attention_in_fp32=True)
    assert whole is not None
    assert apart is not None
    assert whole.greatest == pytest.approx(120 / 120 / 2)
    assert apart.greatest == pytest.approx((100 / 120 + 20 / 50) / 2)


def test_peers_are_compared_with_tokenising_and_servers_without() -> None:
    beside_torch = FP32.times_faster(TORCH, "texts")
    assert beside_torch is not None
    assert (beside_torch.least, beside_torch.greatest) == (pytest.approx(24 / 4), pytest.approx(40 / 5))
    assert FP32.times_faster(TORCH, "ids") is None
    assert TRITON.times_faster(FP32, "texts") is None
    beside = TRITON.times_faster(FP32, "ids")
    assert beside is not None
    assert beside.least == pytest.approx(3 / 4)


def test_goals_are_met_missed_or_not_measured_with_the_reason() -> None:
    found = outcome(FP32, INT8, TORCH, QUANTISED, TRITON, absent={PEER_NAMES["openvino"]: "no such package"})
    by_name = {goal.what: goal for goal in goals(found)}
    verdicts = {name: goal.met for name, goal in by_name.items()}
    assert verdicts["packed fp32: speed beside sentence-transformers, PyTorch"] is True
    # (24 / 3 + 40 / 5) / 2 = 8, and 0.1 points are lost.
    assert verdicts["packed int8: speed beside sentence-transformers, PyTorch"] is True
    assert verdicts["packed fp32: share of the machine's GEMM rate"] is False
    assert verdicts["Triton fp32, 32 clients: throughput beside packed fp32 in process"] is False
    missing = by_name["packed: speed beside sentence-transformers, OpenVINO at equal quality"]
    assert (missing.met, missing.found) == (None, "absent: no such package")
    assert by_name["packed int8: speed beside sentence-transformers, ONNX int8 at equal quality"].met is False


def test_a_fast_graph_that_ranks_worse_does_not_meet_the_goal() -> None:
    worse = line("packed int8", "packed", "int8", [1.0, 1.0], ndcg=69.5)
    by_name = {goal.what: goal for goal in goals(outcome(FP32, worse, TORCH))}
    goal = by_name["packed int8: speed beside sentence-transformers, PyTorch"]
    assert (goal.met, goal.found) == (False, "16.00x, loss 0.50")


def test_every_absent_contender_stands_in_the_report() -> None:
    reasons = {"Triton fp32": "no binary", PEER_NAMES["onnx"]: "not installed", "torch int8": "no kernel"}
    found = outcome(FP32, absent=reasons)
    tables = {table.title: table for table in outcome_tables(found, {})}
    assert [list(row) for row in tables["Embedding: not measured"].rows] == [
        ["Triton fp32", "no binary"],
        [PEER_NAMES["onnx"], "not installed"],
        ["PyTorch, int8", "no kernel"],
    ]
    assert outcome_figures(found, {})["absent"] == found.absent


def test_kernels_have_the_names_of_their_runtimes_in_tables_and_of_their_packages_in_figures() -> None:
    found = outcome(FP32)
    tables = {table.title: table for table in outcome_tables(found, {})}
    kernels = tables["Embedding: what this machine multiplies, at the model's shapes"]
    assert [row[0] for row in kernels.rows] == ["ONNX Runtime, fp32", "PyTorch, fp32", "ONNX Runtime, int8"]
    assert [row[2] for row in kernels.rows] == ["the limit", "", "the limit"]
    assert list(outcome_figures(found, {})["gemm_gflop_per_s"]) == list(found.rates)


def test_cosines_find_a_neighbours_row_and_correlations_a_swapped_score() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((6, 8)).astype(np.float32)
    assert agreement(rows, rows).least == pytest.approx(1.0)
    swapped = agreement(rows[[1, 0, 2, 3, 4, 5]], rows)
    assert swapped.least < 0.9
    assert agreement(rows[:, 0], rows[:, 0] * 2 + 1).least == pytest.approx(1.0)
    assert agreement(rows[::-1, 0], rows[:, 0]).least < 0.9
    with pytest.raises(ValueError, match="beside"):
        agreement(rows[:3], rows)


def test_rows_that_are_no_numbers_are_wrong() -> None:
    rows = np.ones((2, 3), np.float32)
    rows[1] = np.nan
    assert not agreement(rows, np.ones((2, 3), np.float32)).passes(FP32.contender)


def test_constant_scores_agree() -> None:
    """A correlation of two constants is not defined; two models that say the same are right all the same."""
    scores = np.full(4, 0.5, np.float32)
    assert agreement(scores, scores) == Agreement(1.0, 1.0)
