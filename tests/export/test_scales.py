"""W8A8 in numpy and in the graph: one linear layer against an independent computation, rounding, smoothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from skillserve_export.device import open_session
from skillserve_export.precision.int8 import quantise_layers
from skillserve_export.precision.linear import linear_layers
from skillserve_export.precision.scales import quantised_weights, rounded_rows, smoothing

Floats = Any


def _layer(weight_KN: Floats, bias_N: Floats, rank: int, factor_K: Floats | None, *, gemm: bool) -> Any:
    """A session of one quantised layer."""
    features, outputs = weight_KN.shape
    rows = ["rows"] if rank == 2 else ["texts", "tokens"]
    constants = {"weight": weight_KN.T if gemm else weight_KN, "bias": bias_N}
    nodes = [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)]
    if not gemm:
        nodes = [helper.make_node("MatMul", ["x", "weight"], ["xw"]), helper.make_node("Add", ["xw", "bias"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*rows, features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*rows, outputs])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    quantise_layers(model, linear_layers(model), {} if factor_K is None else {"x": factor_K}, {"x": rank})
    onnx.checker.check_model(model, full_check=True)
    assert [tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert "weight" not in {tensor.name for tensor in model.graph.initializer}
    return open_session(model.SerializeToString())


def _by_hand(x: Floats, weight_KN: Floats, bias_N: Floats, factor_K: Floats) -> Floats:
    """The same layer in whole numbers of Python's size, token by token and channel by channel."""
    result = np.empty((*x.shape[:-1], len(bias_N)), np.float32)
    weights = weight_KN / factor_K[:, None]
    for token in np.ndindex(x.shape[:-1]):
        even = x[token] * factor_K
        scale = np.float32(max(abs(value) for value in even) or 1.0) * np.float32(1 / 127)
        whole = [int(value) for value in np.rint(even / scale)]
        for channel, column in enumerate(weights.T):
            _, [step] = quantised_weights(column[:, None])
            total = sum(a * int(w) for a, w in zip(whole, np.rint(column / step), strict=True))
            result[(*token, channel)] = np.float32(total) * scale * step + bias_N[channel]
    return result


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize(("rank", "gemm"), [(2, True), (2, False), (3, False)])
def test_a_quantised_layer_equals_whole_numbers_counted_by_hand(rank: int, smooth: bool, gemm: bool) -> None:  # noqa: FBT001
    rng = np.random.default_rng(4)
    weight_KN, bias_N = rng.normal(size=(48, 33)).astype(np.float32), rng.normal(size=33).astype(np.float32)
    factor_K = rng.uniform(0.2, 3, 48).astype(np.float32) if smooth else None
    x = rng.normal(size=(5, 48) if rank == 2 else (2, 3, 48)).astype(np.float32)
    x[0] *= 1_000  # a token of another size
    x[-1] = 0  # and one of nothing
    [found] = _layer(weight_KN, bias_N, rank, factor_K, gemm=gemm).run(None, {"x": x})
    expected = _by_hand(x, weight_KN, bias_N, np.ones(48, np.float32) if factor_K is None else factor_K)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[-1], np.broadcast_to(bias_N, found[-1].shape))


def test_a_token_is_rounded_by_its_own_scale_whatever_stands_beside_it() -> None:
    """One scale for the whole batch would lose the small token beside the large one."""
    rng = np.random.default_rng(5)
    session = _layer(rng.normal(size=(64, 64)).astype(np.float32), np.zeros(64, np.float32), 2, None, gemm=True)
    x = rng.normal(size=(40, 64)).astype(np.float32) * 10.0 ** rng.integers(-6, 6, (40, 1)).astype(np.float32)
    [together] = session.run(None, {"x": x})
    alone = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    np.testing.assert_array_equal(together, alone)


weights = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).standard_t(2, (64, 8)).astype(np.float32)  # with outliers
)


@settings(max_examples=50, deadline=None)
@given(weights)
def test_weights_are_off_by_half_a_step_at_most_and_never_saturate(weight_KN: Floats) -> None:
    """The second as processors without VNNI add: two neighbouring products in 16 bits."""
    whole_KN, step_N = quantised_weights(weight_KN)
    assert np.abs(whole_KN.astype(int)).max() <= 127
    error_KN = np.abs(whole_KN * step_N - weight_KN)
    assert (error_KN <= 0.5 * step_N * (1 + 1e-5)).all()
    pairs = [np.maximum(sign * whole_KN.astype(int), 0) for sign in (1, -1)]
    assert max((255 * (pair[1:] + pair[:-1])).max() for pair in pairs) <= 2**15 - 1
    # A larger step than 8 bits ask for is paid for that, but never twice as large.
    assert (step_N <= 2.01 * np.abs(weight_KN).max(axis=0) / 127).all()


def test_a_column_of_zeros_stays_zeros() -> None:
    whole_KN, step_N = quantised_weights(np.zeros((64, 2), np.float32))
    assert not whole_KN.any()
    assert np.isfinite(step_N).all()


def test_smoothing_takes_the_error_of_few_large_channels_away() -> None:
    rng = np.random.default_rng(6)
    x_TK = rng.normal(size=(300, 64)).astype(np.float32)
    x_TK[:, [3, 40]] *= 30
    columns = [rng.normal(size=(64, 32)).astype(np.float32) for _ in range(3)]
    factor_K = smoothing(x_TK, columns)
    assert factor_K is not None

    def error(factor: Floats) -> float:
        total = 0.0
        for weight in columns:
            whole, step = quantised_weights(weight / factor[:, None])
            total += np.square(rounded_rows(x_TK * factor) @ (whole * step) - x_TK @ weight).mean()
        return total

    assert error(factor_K) < 0.3 * error(np.ones(64, np.float32))


def test_even_channels_are_left_alone() -> None:
    """Smoothing costs a pass over the activations, so it has to gain something."""
    rng = np.random.default_rng(7)
    x_TK = rng.normal(size=(300, 64)).astype(np.float32)
    assert smoothing(x_TK, [rng.normal(size=(64, 32)).astype(np.float32)]) is None
