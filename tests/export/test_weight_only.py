"""w8 and w4: weights as they are stored, against a test's own unpacking, and the layers that read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from skillserve_export.device import open_session
from skillserve_export.precision.blocks import BLOCK, packed, quantised_blocks
from skillserve_export.precision.linear import linear_layers
from skillserve_export.precision.stored import store

Floats = Any

BITS = {"w8": 8, "w4": 4}
SHAPES = [(64, 33), (72, 40), (40, 96)]
"""Whole blocks of an even number, of an odd one and a rest, and one block and a rest."""


def _layer(weight_KN: Floats, bias_N: Floats | None, rank: int, precision: str, *, gemm: bool = False) -> Any:
    """One linear layer with stored weights."""
    features, outputs = weight_KN.shape
    rows = ["rows"] if rank == 2 else ["texts", "tokens"]
    constants = {"weight": weight_KN.T if gemm else weight_KN}
    names = ["x", "weight"]
    if bias_N is not None:
        constants["bias"] = bias_N
        names.append("bias")
    node = helper.make_node("Gemm", names, ["y"], transB=1) if gemm else helper.make_node("MatMul", names, ["y"])
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*rows, features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*rows, outputs])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    store(model, linear_layers(model), precision)
    onnx.checker.check_model(model, full_check=True)
    return model


def _unpacked(model: Any) -> Floats:
    """The weights `[K, N]` of the model's only layer, number by number from the bytes of its initialisers."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    facts = {each.name: helper.get_attribute_value(each) for each in model.graph.node[0].attribute}
    bits, blocks = facts["bits"], -(-facts["K"] // 32)
    assert stored["y/weight"].shape == (facts["N"], blocks, 4 * bits)
    zeros, scales = stored["y/zero"].reshape(facts["N"], -1), stored["y/scale"].reshape(facts["N"], blocks)
    weights = np.empty((facts["K"], facts["N"]), np.float32)
    for k, n in np.ndindex(weights.shape):
        block, place = divmod(k, 32)
        code, zero = _code(stored["y/weight"][n, block], place, bits), _code(zeros[n], block, bits)
        weights[k, n] = (code - zero) * scales[n, block]
    return weights


def _code(row: Any, place: int, bits: int) -> int:
    """A number of four bits, two of which share a byte, or of eight."""
    if bits == 8:
        return int(row[place])
    byte = int(row[place // 2])
    return byte // 16 if place % 2 else byte % 16


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", BITS)
def test_stored_weights_are_near_those_they_stand_for(precision: str, shape: tuple[int, int]) -> None:
    weight_KN = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    stored = _unpacked(_layer(weight_KN, None, 2, precision))
    error = np.sqrt(np.square(stored - weight_KN).mean())
    assert {"w8": 1e-3, "w4": 2e-2}[precision] < error < {"w8": 6e-3, "w4": 9e-2}[precision], "of numbers around 1"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rank", "gemm"), [(2, True), (2, False), (3, False)])
@pytest.mark.parametrize("precision", BITS)
def test_a_layer_multiplies_what_is_stored(
    precision: str,
    rank: int,
    gemm: bool,  # noqa: FBT001
    shape: tuple[int, int],
) -> None:
    """Up to the rounding of activations, which whole numbers below 127 in every block do not have."""
    rng = np.random.default_rng(2)
    weight_KN = rng.normal(size=shape).astype(np.float32)
    bias_N = rng.normal(size=shape[1]).astype(np.float32) if gemm else None
    x = rng.integers(-126, 127, (5, shape[0]) if rank == 2 else (2, 3, shape[0])).astype(np.float32)
    x[..., ::BLOCK] = 127
    model = _layer(weight_KN, bias_N, rank, precision, gemm=gemm)
    [found] = open_session(model.SerializeToString()).run(None, {"x": x})
    expected = x.astype(np.float64) @ _unpacked(model) + (0 if bias_N is None else bias_N)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(x).sum(axis=-1).max(), rtol=0)


@pytest.mark.parametrize("precision", BITS)
def test_a_token_has_the_same_bits_in_any_company(precision: str) -> None:
    """Bits, since one last bit before a rounding may move a number of the next layer by a whole step."""
    rng = np.random.default_rng(3)
    weight_KN = rng.normal(size=(96, 160)).astype(np.float32)
    session = open_session(_layer(weight_KN, None, 2, precision).SerializeToString())
    x = rng.normal(size=(70, 96)).astype(np.float32) * 10.0 ** rng.integers(-3, 3, (70, 1)).astype(np.float32)
    [together] = session.run(None, {"x": x})
    for few in (1, 2, 7):
        apart = [session.run(None, {"x": x[i : i + few]})[0] for i in range(0, len(x), few)]
        np.testing.assert_array_equal(together, np.concatenate(apart))


weights = arrays.arrays(np.float32, (BLOCK, 3), elements=st.floats(-4, 4, width=32))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(weight_KN=weights)
def test_a_block_is_rounded_no_worse_than_to_the_nearest_of_its_whole_span(weight_KN: Floats) -> None:
    codes, scale, zero = quantised_blocks(weight_KN, 4)
    restored = ((codes[:, 0].astype(int) - zero) * scale).T
    low, high = np.minimum(weight_KN.min(axis=0), 0), np.maximum(weight_KN.max(axis=0), 0)
    step = np.maximum((high - low) / 15, 1e-30)
    start = np.rint(-low / step)
    nearest = (np.clip(np.rint(weight_KN / step) + start, 0, 15) - start) * step
    limit = np.square(nearest - weight_KN).sum(axis=0)
    assert (np.square(restored - weight_KN).sum(axis=0) <= limit * (1 + 1e-4) + 1e-10).all()


def test_spans_are_cut_and_scales_fitted_where_that_pays() -> None:
    weight_KN = np.random.default_rng(4).standard_t(4, size=(BLOCK, 500)).astype(np.float32)
    codes, scale, zero = quantised_blocks(weight_KN, 4)
    error = np.square((codes[:, 0].astype(int) - zero) * scale - weight_KN.T).mean()
    step = (weight_KN.max(axis=0) - weight_KN.min(axis=0)) / 15
    start = np.rint(-weight_KN.min(axis=0) / step)
    nearest = (np.clip(np.rint(weight_KN / step) + start, 0, 15) - start) * step
    assert error < 0.95 * np.square(nearest - weight_KN).mean()


def test_blocks_of_zeros_stay_zeros_and_many_weights_are_rounded_like_few(monkeypatch: pytest.MonkeyPatch) -> None:
    weight_KN = np.random.default_rng(5).normal(size=(2 * BLOCK, 9)).astype(np.float32)
    weight_KN[:BLOCK, 4] = 0
    whole = quantised_blocks(weight_KN, 4)
    assert (whole.codes[4, 0] == whole.zero[4, 0]).all()
    monkeypatch.setattr("skillserve_export.precision.blocks._MOST_WEIGHTS", 4 * BLOCK)
    for few, many in zip(quantised_blocks(weight_KN, 4), whole, strict=True):
        np.testing.assert_array_equal(few, many)


def test_an_odd_number_of_codes_is_filled_up() -> None:
    np.testing.assert_array_equal(packed(np.array([[1, 2, 15]], np.uint8), 4), [[0x21, 0x0F]])
