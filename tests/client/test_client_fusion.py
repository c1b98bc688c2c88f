"""A reranker whose card weighs the similarity: search and measurement order by the same final score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.settings import IndexSettings, SearchSettings
from skillserve_client import Searcher, build_bundle, open_bundle

WEIGHT = 2.5


@pytest.fixture
def weighted(world: IndexSettings, card_of: Callable[..., Any]) -> Callable[[float], IndexSettings]:
    """The tiny world, with this weight in the reranker's card."""

    def change(weight: float) -> IndexSettings:
        card = card_of("reranker", similarity_weight=weight)
        (world.models / "skill_reranker" / "card.json").write_text(card.model_dump_json())
        return world

    return change


def test_hits_are_ordered_by_the_final_score_and_carry_it(
    weighted: Callable[[float], IndexSettings], catalogue: Path, fake: Any
) -> None:
    settings = weighted(WEIGHT)
    build_bundle(catalogue, fake, index=settings)
    bundle = open_bundle(settings.bundles)
    hits = Searcher(bundle, fake, SearchSettings(rerank_depth=3)).search("resize photo pdf").hits
    rows = {skill: row for row, skill in enumerate(bundle.corpus.skills.ids())}
    assert bundle.corpus.reranker is not None
    query = bundle.corpus.reranker.query("resize photo pdf").ids
    logits = fake.infer("reranker", bundle.corpus.pairs(query, [rows[hit.skill_id] for hit in hits[:3]]))
    expected = [float(logit) + WEIGHT * hit.similarity for logit, hit in zip(logits, hits[:3], strict=True)]
    assert [hit.score for hit in hits[:3]] == pytest.approx(expected)
    assert expected == sorted(expected, reverse=True)
    assert [hit.score for hit in hits[3:]] == [hit.similarity for hit in hits[3:]]


def test_a_weight_that_drowns_the_logits_leaves_the_order_of_the_index(
    weighted: Callable[[float], IndexSettings], catalogue: Path, judged_file: Path, fake: Any
) -> None:
    """In search and in the measurement before publication alike; without it this reranker turns the order around."""
    fake.score = lambda ids: np.float32(-len(set(ids.tolist())))
    for weight, same in ((1e6, True), (0.0, False)):
        settings = weighted(weight)
        quality = build_bundle(catalogue, fake, index=settings, queries=judged_file, force=True).quality
        assert quality is not None
        assert (quality.two_stage == quality.first_stage) is same
        bundle = open_bundle(settings.bundles)
        orders = [
            [hit.skill_id for hit in Searcher(bundle, fake, SearchSettings(rerank_depth=depth)).search("pdf").hits]
            for depth in (0, 5)
        ]
        assert (orders[0] == orders[1]) is same
