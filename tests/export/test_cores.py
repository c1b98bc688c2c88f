"""The bodies of the banded attention against a softmax written out in numpy, operator by operator in ONNX Runtime."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, inliner

from skillserve_export.bodies import DOMAIN, OPSET
from skillserve_export.cores import CAUSAL, Band, Heads, banded_attention, core_functions

DIM = 4
SAME = 2e-6
"""Averages of numbers around 1, summed in another order."""
GROUPS = [Heads(4, 4), Heads(4, 2), Heads(3, 1)]
BANDS = [CAUSAL, Band(8, 8), Band(64, 64), Band(30, 0), Band(0, 0)]

Array = npt.NDArray[Any]


@cache
def session(core: str, heads: Heads, band: Band) -> ort.InferenceSession:
    """A graph of one node, its body inlined."""
    node = helper.make_node(
        "BandedSegmentAttention",
        ["query", "key", "value", "bounds"],
        ["mixed"],
        domain=DOMAIN,
        num_heads=heads.query,
        num_kv_heads=heads.key,
        before=band.before,
        after=band.after,
    )
    sides = (("query", heads.query), ("key", heads.key), ("value", heads.key))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", n * DIM]) for name, n in sides]
    inputs.append(helper.make_tensor_value_info("bounds", TensorProto.INT64, ["S"]))
    output = helper.make_tensor_value_info("mixed", TensorProto.FLOAT, ["T", heads.query * DIM])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(helper.make_graph([node], "one", inputs, [output]), opset_imports=opsets, ir_version=8)
    model.functions.extend(core_functions(core))
    whole = inliner.inline_local_functions(model).SerializeToString()
    return ort.InferenceSession(whole, providers=["CPUExecutionProvider"])


def written_out(query: Array, key: Array, value: Array, bounds: Array, heads: Heads, band: Band) -> Array:
    """Token by token, head by head, in float64."""
    mixed = np.zeros(query.shape)
    for start, end in pairwise(bounds):
        for i in range(start, end):
            seen = slice(max(start, i - band.before), min(end, i + band.after + 1))
            for head in range(heads.query):
                mine = slice(head * DIM, (head + 1) * DIM)
                other = head * heads.key // heads.query
                theirs = slice(other * DIM, (other + 1) * DIM)
                scores = key[seen, theirs].astype(np.float64) @ query[i, mine] / np.sqrt(DIM)
                weights = np.exp(scores - scores.max())
                mixed[i, mine] = weights @ value[seen, theirs] / weights.sum()
    return mixed


def tensors(lens: list[int], heads: Heads, seed: int = 0) -> tuple[Array, ...]:
    rng = np.random.default_rng(seed)
    shapes = [(sum(lens), n * DIM) for n in (heads.query, heads.key, heads.key)]
    return (*(rng.normal(size=shape).astype(np.float32) for shape in shapes), np.cumsum([0, *lens]))


@pytest.mark.parametrize("core", ["loop", "gather"])
@pytest.mark.parametrize("heads", GROUPS, ids=str)
@pytest.mark.parametrize("band", BANDS, ids=str)
def test_a_body_computes_what_is_written_out(core: str, heads: Heads, band: Band) -> None:
    @settings(max_examples=8, deadline=None, database=None)
    @given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    def of_any_lengths(lens: list[int]) -> None:
        inputs = tensors(lens, heads, seed=sum(lens))
        names = ("query", "key", "value", "bounds")
        [found] = session(core, heads, band).run(None, dict(zip(names, inputs, strict=True)))
        np.testing.assert_allclose(found, written_out(*inputs, heads, band), rtol=0, atol=SAME)

    of_any_lengths()


@pytest.mark.parametrize("core", ["loop", "gather"])
@pytest.mark.parametrize("band", [CAUSAL, Band(8, 8)], ids=str)
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_what_overflows_stays_in_its_sequence(core: str, band: Band, broken: int) -> None:
    """Half precision may: padding that reads another sequence's token would carry it over."""
    lens, heads = [3, 200, 40], GROUPS[1]
    *sides, bounds = tensors(lens, heads)
    inside = np.zeros(sum(lens), bool)
    inside[bounds[broken] : bounds[broken + 1]] = True
    names = ("query", "key", "value", "bounds")
    wanted = session(core, heads, band).run(None, dict(zip(names, (*sides, bounds), strict=True)))[0]
    for side in sides:
        side[inside] = np.inf
    [found] = session(core, heads, band).run(None, dict(zip(names, (*sides, bounds), strict=True)))
    np.testing.assert_array_equal(found[~inside], wanted[~inside])
    assert not np.isfinite(found[inside]).any()


@pytest.mark.parametrize("core", ["loop", "gather"])
@pytest.mark.parametrize("band", [CAUSAL, Band(64, 64), Band(200, 0)], ids=str)
def test_chunks_meet_without_a_seam(core: str, band: Band) -> None:
    """Sequences around one and two chunks of 128, many short ones between them, and what the tracer runs in torch."""
    heads = GROUPS[1]
    inputs = tensors([127, 1, 128, *[2] * 70, 129, 257, 300], heads)
    names = ("query", "key", "value", "bounds")
    [found] = session(core, heads, band).run(None, dict(zip(names, inputs, strict=True)))
    wanted = banded_attention(*map(torch.from_numpy, inputs), heads, band).numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=SAME)
    np.testing.assert_allclose(
        found[:256], written_out(*(x[:256] for x in inputs[:3]), inputs[3][:4], heads, band), rtol=0, atol=SAME
    )
