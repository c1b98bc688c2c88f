"""The one sum of both stages, and the card's word on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from skillserve.card import ModelCard, compute_digest, read_card
from skillserve.fusion import PLAIN, FirstStageWeights, blend, fuse, scored_texts
from skillserve.settings import EvaluateSettings

LOGITS = np.array([2.5, -1.25, 0.0], np.float32)
SIMILARITIES = np.array([0.5, 1.0, -0.25], np.float32)


def test_final_scores_are_logit_plus_weighted_similarity() -> None:
    scores = fuse(LOGITS, SIMILARITIES, 4.0)
    assert scores.dtype == np.float32
    assert scores.tolist() == [2.5 + 4 * 0.5, -1.25 + 4.0, -1.0]


def test_without_a_weight_the_logits_are_final_bit_for_bit() -> None:
    """A sum with 0 would turn -0.0 into 0.0, and scores of cards without a weight must not move."""
    logits = np.array([-0.0, 3.1], np.float32)
    assert fuse(logits, SIMILARITIES[:2], 0.0).tobytes() == logits.tobytes()


def test_logits_and_similarities_must_pair_up() -> None:
    with pytest.raises(ValueError, match="pair up"):
        fuse(LOGITS, SIMILARITIES[:1], 0.0)


NEAR = np.array([[0.5, -0.25, 0.75], [0.25, 1.0, 0.5], [0.75, -0.5, 0.25]], np.float32)
"""Of a request and its two parts, with three skills."""
WORDS = np.array([[0.0, 8.0, 4.0], [2.0, 0.0, 2.0]], np.float32)
"""That its parts share with them."""


def test_first_stage_scores_are_the_requests_and_those_of_its_best_parts_with_their_words() -> None:
    scores = blend(NEAR, WORDS, FirstStageWeights(lexical=0.5, parts=2.0))
    assert scores.dtype == np.float32
    assert scores.tolist() == [0.5 + 2 * (0.75 + 0.125), -0.25 + 2 * (1.0 + 0.5), 0.75 + 2 * (0.5 + 0.25)]
    assert blend(NEAR, None, FirstStageWeights(parts=2.0)).tolist() == [2.0, 1.75, 1.75]


def test_a_request_without_parts_is_its_own() -> None:
    assert blend(NEAR[:1], None, FirstStageWeights(parts=3.0)).tolist() == [2.0, -1.0, 3.0]
    assert scored_texts(FirstStageWeights(parts=3.0).pieces("One sentence only.")) == ("One sentence only.",)


def test_words_are_counted_in_the_parts_where_those_weigh_something() -> None:
    request = "Merge two files. Keep the marks. Drop blank pages. Mail the result."
    assert scored_texts(FirstStageWeights(lexical=1.0).pieces(request)) == (request,)
    whole, *parts = pieces = FirstStageWeights(parts=1.0).pieces(request)
    assert whole == request
    assert list(scored_texts(pieces)) == parts
    first, second = parts
    assert first == "Merge two files. Keep the marks. Drop blank pages."
    assert second == "Keep the marks. Drop blank pages. Mail the result."


def test_a_weight_of_0_leaves_parts_and_words_out_bit_for_bit() -> None:
    near = np.array([[-0.0, 0.1, 0.3], [1.0, 1.0, 1.0]], np.float32)
    assert blend(near, WORDS[:1], PLAIN).tobytes() == near[0].tobytes()


def test_weights_are_read_off_settings_and_say_what_they_are() -> None:
    weights = FirstStageWeights.of(EvaluateSettings(lexical_weight=0.2, part_weight=1))
    assert weights == FirstStageWeights(lexical=0.2, parts=1.0)
    assert str(weights) == "lexical 0.2, parts 1"
    assert FirstStageWeights.of(EvaluateSettings()) == PLAIN


def test_a_weight_changes_the_digest_and_none_leaves_it_alone(tiny_reranker: Path) -> None:
    card = read_card(tiny_reranker)
    assert "similarity_weight" not in card.canonical_json()
    assert compute_digest(tiny_reranker, card) == card.digest
    assert compute_digest(tiny_reranker, card.model_copy(update={"similarity_weight": 2.0})) != card.digest


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_a_weight_that_is_no_weight_is_refused(tiny_reranker: Path, weight: float) -> None:
    with pytest.raises(ValidationError, match="similarity_weight"):
        ModelCard.model_validate(read_card(tiny_reranker).model_dump() | {"similarity_weight": weight})


def test_an_embedder_has_no_weight(tiny_embedder: Path) -> None:
    with pytest.raises(ValidationError, match="belongs to a reranker"):
        ModelCard.model_validate(read_card(tiny_embedder).model_dump() | {"similarity_weight": 1.0})
