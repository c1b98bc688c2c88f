"""Late interaction in a graph: pairs cut in two against loops over tokens, scores in any company."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from skillserve.card import ModelCard, read_card, write_card
from skillserve.errors import CardError
from skillserve.tensors import Ids
from skillserve_export.families import family_of
from skillserve_export.graph import export_packed, export_padded
from skillserve_export.layout import Limits, packed_layout
from skillserve_export.pairs import pair_layout
from skillserve_export.parity import PackedGraph, PaddedGraph

SAME_SCORE = 2e-5
"""Sums of float32 in another order behind two layers, times the scale of 10."""
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
        export_packed(family.packed(model, card, folder, 20_000), card, card.role, request.param, path)
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


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("a short table", r"of shape \(5,\)"),
        ("a weight below 0", "below 0, or no numbers"),
        ("no window", "no window in config.json"),
    ],
)
def test_weights_that_no_score_can_be_made_with_are_refused(
    fault: str, told: str, make_weights: Callable[..., Path]
) -> None:
    folder = make_weights("late-bert", "reranker", None, max_tokens=40)
    tensors = load_file(folder / "model.safetensors")
    facts = json.loads((folder / "config.json").read_bytes())
    match fault:
        case "a short table":
            tensors["token_weights"] = torch.ones(5)
        case "a weight below 0":
            tensors["token_weights"][7] = -1
        case _:
            del facts["window"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(facts))
    card = write_card(folder, read_card(folder))
    with pytest.raises(CardError, match=told):
        family_of(card).load(folder, card)


def test_an_embedder_of_this_family_is_refused(make_weights: Callable[..., Path]) -> None:
    folder = make_weights("bert", "embedder", "mean", max_tokens=40)
    card = write_card(folder, read_card(folder).model_copy(update={"family": "late-bert"}))
    with pytest.raises(CardError, match="role embedder; wanted reranker"):
        family_of(card).load(folder, card)
