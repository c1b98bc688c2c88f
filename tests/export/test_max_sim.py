"""The bodies of the best stretch against sums written out in numpy, operator by operator in ONNX Runtime."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, inliner

from skillserve_export.bodies import DOMAIN, OPSET
from skillserve_export.cores import core_functions, segment_max_sim

SAME = 2e-6
"""Averages of cosines, summed in another order."""

Array = npt.NDArray[Any]


@cache
def session(core: str, window: int) -> ort.InferenceSession:
    """A graph of one node, its body inlined."""
    names = ["states", "weights", "bounds", "requests", "skills"]
    node = helper.make_node("SegmentMaxSim", names, ["best"], domain=DOMAIN, window=[window])
    kinds = [TensorProto.FLOAT] * 2 + [TensorProto.INT64] * 3
    shapes = [["T", 4], ["T"], ["S"], ["P"], ["P"]]
    inputs = [helper.make_tensor_value_info(*each) for each in zip(names, kinds, shapes, strict=True)]
    output = helper.make_tensor_value_info("best", TensorProto.FLOAT, ["P"])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(helper.make_graph([node], "one", inputs, [output]), opset_imports=opsets, ir_version=8)
    model.functions.extend(core_functions(core))
    whole = inliner.inline_local_functions(model).SerializeToString()
    return ort.InferenceSession(whole, providers=["CPUExecutionProvider"])


class Texts(NamedTuple):
    """What the operation reads."""

    states: Array
    weights: Array
    bounds: Array
    requests: Array
    skills: Array

    def best(self, core: str, window: int) -> Array:
        """What a core makes of them."""
        [best] = session(core, window).run(None, self._asdict())
        return np.asarray(best)


def texts(lens: list[int], num_pairs: int, seed: int) -> Texts:
    """Random unit states; every third token weighs nothing, and rare ones a hundred times what common ones do."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(sum(lens), 4)).astype(np.float32)
    weights = rng.choice([0.0, 0.05, 5.0], sum(lens)).astype(np.float32)
    sides = rng.integers(0, len(lens), (2, num_pairs))
    return Texts(states / np.linalg.norm(states, axis=1, keepdims=True), weights, np.cumsum([0, *lens]), *sides)


def written_out(given: Texts, window: int) -> Array:
    """Pair by pair, stretch by stretch, token by token, in float64."""
    best = []
    for request, skill in zip(given.requests, given.skills, strict=True):
        asks, offers = (range(given.bounds[side], given.bounds[side + 1]) for side in (request, skill))
        states = given.states.astype(np.float64)
        nearest = [max((states[q] @ states[s] for s in offers if given.weights[s] > 0), default=-1.0) for q in asks]
        weights = [float(given.weights[q]) for q in asks]
        size = min(window, len(weights))
        means = []
        for start in range(len(weights) - size + 1):
            stretch = range(start, start + size)
            weight = sum(weights[i] for i in stretch)
            means.append(sum(weights[i] * nearest[i] for i in stretch) / weight if weight else 0.0)
        best.append(max(means))
    return np.array(best)


@pytest.mark.parametrize("window", [1, 5, 16])
@settings(max_examples=40, deadline=None, database=None)
@given(
    lens=st.lists(st.integers(1, 30), min_size=1, max_size=6), num_pairs=st.integers(1, 90), seed=st.integers(0, 2**31)
)
def test_every_body_finds_the_best_stretch(window: int, lens: list[int], num_pairs: int, seed: int) -> None:
    """Texts shorter and longer than a stretch, more pairs than a block of the loop holds, and what torch traces."""
    drawn = texts(lens, num_pairs, seed)
    wanted = written_out(drawn, window)
    traced = segment_max_sim(*map(torch.from_numpy, drawn), window).numpy()
    for found in (traced, drawn.best("loop", window), drawn.best("gather", window)):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=SAME)


@pytest.mark.parametrize("core", ["loop", "gather"])
@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize("token", [0, -1])
def test_what_overflows_stays_in_its_pairs_and_is_seen(core: str, broken: int, token: int) -> None:
    """One token is enough, and a maximum of ONNX Runtime passes over it."""
    drawn = texts([3, 9, 20], 1, 0)._replace(requests=np.array([0, 0, 1, 2, 1]), skills=np.array([1, 2, 1, 2, 0]))
    reads = (drawn.requests == broken) | (drawn.skills == broken)
    wanted = drawn.best(core, 5)
    drawn.states[drawn.bounds[broken : broken + 2][token] + token] = np.nan
    found = drawn.best(core, 5)
    np.testing.assert_array_equal(found[~reads], wanted[~reads])
    assert np.isnan(found[reads]).all()
