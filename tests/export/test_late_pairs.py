"""Late interaction in a graph: pairs cut in two against loops over tokens, best stretches against sums written out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, inliner

from skillserve.card import ModelCard, read_card, write_card
from skillserve.errors import CardError
from skillserve.tensors import Ids
from skillserve_export.bodies import DOMAIN, OPSET
from skillserve_export.cores import core_functions, segment_max_sim
from skillserve_export.families import family_of
from skillserve_export.graph import export_packed, export_padded
from skillserve_export.layout import Limits, packed_layout
from skillserve_export.pairs import pair_layout
from skillserve_export.parity import PackedGraph, PaddedGraph

SAME = 2e-6
"""Averages of cosines, summed in another order."""
SAME_SCORE = 2e-5
"""The same behind two layers, times the scale of 10."""
OPENING = 1

Array = npt.NDArray[Any]

few_ids = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=8)
"""Of three words one opens texts, so there are pairs, malformed pairs and equal requests in plenty."""


@settings(max_examples=300, deadline=None)
@given(few_ids)
def test_pairs_are_cut_at_their_first_inner_opening_token_and_requests_read_once(sequences: list[list[int]]) -> None:
    lens = torch.tensor([len(sequence) for sequence in sequences])
    ends = torch.arange(len(sequences)) + 1
    ids = torch.tensor([token for sequence in sequences for token in sequence])
    layout = packed_layout(ids, lens, torch.cumsum(lens, 0), ends, Limits(3, 7, 1000))
    pairs = pair_layout(layout, OPENING)
    texts: list[list[int]] = []
    wanted = []
    request: list[int] = []
    request_at = 0
    for sequence in sequences:
        inner = [place for place, token in enumerate(sequence) if token == OPENING and place > 0]
        if sequence[0] != OPENING or not inner:
            texts.append(sequence)
            wanted.append((len(texts) - 1, len(texts) - 1, False))
            request = []
            continue
        if sequence[: inner[0]] != request:
            request, request_at = sequence[: inner[0]], len(texts)
            texts.append(request)
        texts.append(sequence[inner[0] :])
        wanted.append((request_at, len(texts) - 1, True))
    assert list(zip(pairs.requests.tolist(), pairs.skills.tolist(), pairs.well_formed.tolist(), strict=True)) == wanted
    edges = pairs.texts.bounds.tolist()
    assert [pairs.texts.input_ids[start:end].tolist() for start, end in pairwise(edges)] == texts
    assert pairs.texts.lens.tolist() == [len(text) for text in texts]
    assert pairs.texts.sequence.tolist() == [row for row, text in enumerate(texts) for _ in text]
    assert pairs.texts.position.tolist() == [place for text in texts for place in range(len(text))]


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


class Subject(NamedTuple):
    """A random model, its graph, and pairs of a few requests and skills."""

    card: ModelCard
    folder: Path
    kind: str
    graph: PackedGraph | PaddedGraph
    requests: list[Ids]
    skills: list[Ids]

    def score(self, pairs: list[Ids]) -> Array:
        """One execution, all pairs one request of the server where there are such."""
        if isinstance(self.graph, PaddedGraph):
            return self.graph.run(pairs)
        lens = [len(pair) for pair in pairs]
        return self.graph.run_raw(np.concatenate(pairs), lens, [sum(lens)], [len(lens)])

    def assert_same(self, found: Array, wanted: Array) -> None:
        """The core `loop` gives the same bits, the others differ by rounding."""
        np.testing.assert_allclose(found, wanted, rtol=0, atol=0 if self.kind == "loop" else SAME_SCORE)


@pytest.fixture(scope="module", params=["loop", "gather", "padded"])
def subject(
    request: pytest.FixtureRequest, make_weights: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    """One graph; requests shorter and longer than a stretch of 6, one the beginning of another, one without words."""
    folder = make_weights("late-bert", "reranker", None, max_tokens=60, seed=5)
    card, path = read_card(folder), tmp_path_factory.mktemp("late") / "model.onnx"
    family = family_of(card)
    model = family.load(folder, card)
    graph: PackedGraph | PaddedGraph
    if request.param == "padded":
        export_padded(family.padded(model, card, folder), card, path)
        graph = PaddedGraph(path)
    else:
        export_packed(family.packed(model, card, folder, 20_000), card, request.param, path)
        graph = PackedGraph(path)
    opening, separator = 2, 3
    rng = np.random.default_rng(4)

    def text(words: Array) -> Ids:
        return np.array([opening, *words, separator], np.int32)

    long = rng.integers(5, card.vocab_size, 25)
    requests = [text(long), text(long[:9]), text(long[:2]), np.array([opening], np.int32), text(long[::-1])]
    skills = [text(rng.integers(5, card.vocab_size, n)) for n in (0, 1, 7, 20, 30)]
    return Subject(card, folder, request.param, graph, requests, skills)


def test_any_company_leaves_a_score_as_it_is(subject: Subject, late_score: Callable[[Path, Ids], float]) -> None:
    """Pairs of one request one behind the other, pairs whose requests only begin alike, the same pair twice."""
    pairs = [np.concatenate([request, skill]) for request in subject.requests for skill in subject.skills]
    wanted = np.array([late_score(subject.folder, pair) for pair in pairs])
    alone = np.concatenate([subject.score([pair]) for pair in pairs])
    np.testing.assert_allclose(alone, wanted, rtol=0, atol=SAME_SCORE)
    assert wanted.std() > 1

    @settings(max_examples=25, deadline=None, database=None)
    @given(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=9))
    def in_company(batch: list[int]) -> None:
        subject.assert_same(subject.score([pairs[at] for at in batch]), alone[batch])

    in_company()
    subject.assert_same(subject.score(pairs), alone)


def test_requests_of_the_server_may_meet_between_equal_requests(subject: Subject) -> None:
    """Two clients that ask the same: what is read once may stand in another request of the server."""
    if isinstance(subject.graph, PaddedGraph):
        pytest.skip("a padded batch has no such boundaries")
    pairs = [np.concatenate([subject.requests[0], skill]) for skill in subject.skills]
    lens = [len(pair) for pair in pairs]
    together = subject.graph.run_raw(np.concatenate(pairs), lens, np.cumsum([sum(lens[:2]), sum(lens[2:])]), [2, 5])
    subject.assert_same(together, np.concatenate([subject.score([pair]) for pair in pairs]))


def test_malformed_pairs_are_nan_and_change_no_other(subject: Subject) -> None:
    """In one request of the server too, before, behind and between pairs of one request; and with nobody else there."""
    sound = [np.concatenate([subject.requests[at], skill]) for at in (0, 4) for skill in subject.skills[1:4]]
    word, opening = 7, 2
    malformed = [np.array(ids, np.int32) for ids in ([opening], [word], [word, opening, word], [opening, word, 3, 3])]
    malformed.append(subject.requests[0])
    alone = np.concatenate([subject.score([pair]) for pair in sound])
    for bad in malformed:
        mixed = [bad, bad]
        for pair in sound:
            mixed += [pair, bad]
        rows = subject.score(mixed)
        subject.assert_same(rows[2::2], alone)
        assert np.isnan(rows[[0, *range(1, len(rows), 2)]]).all()
        assert np.isnan(subject.score([bad])).all()
    assert np.isnan(subject.score(malformed)).all()


def test_a_batch_of_nothing_sound_answers_nan(subject: Subject) -> None:
    if isinstance(subject.graph, PaddedGraph):
        pytest.skip("a padded batch has no lengths that could be wrong")
    assert np.isnan(subject.graph.run_raw([5, 6], [3], [2], [1])).all()
    assert subject.graph.run_raw([], [], [0], [0]).shape == (0,)


def test_an_embedder_of_this_family_is_refused(make_weights: Callable[..., Path]) -> None:
    folder = make_weights("bert", "embedder", "mean", max_tokens=40)
    card = write_card(folder, read_card(folder).model_copy(update={"family": "late-bert"}))
    with pytest.raises(CardError, match="role embedder; wanted reranker"):
        family_of(card).load(folder, card)
