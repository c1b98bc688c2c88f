"""The material of a calibration: one scoring, two rankings, and how much each sample counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.console import progress
from skillserve.settings import IndexSettings
from skillserve_client import build_bundle, open_bundle
from skillserve_client.samples import Asked, Weights, sample, score_requests

DEPTH = 3


def test_leaving_a_skill_out_of_the_samples_equals_leaving_it_out_of_the_catalogue(
    world: IndexSettings, bundles: Path, catalogue: Path, fake: Any
) -> None:
    """The candidate that moves up has been reranked too, and everything was scored once."""
    fitting = Asked(text="pdf merge git", golds=frozenset({"pdf"}))
    nothing = Asked(text="send email", golds=frozenset())
    scored = score_requests(open_bundle(bundles), [fitting, nothing], fake, DEPTH, progress)
    assert [len(request.scores) for request in scored] == [DEPTH + 1, DEPTH]
    assert [(role, len(sequences)) for role, sequences, _ in fake.calls] == [("embedder", 2), ("reranker", 7)]

    rows = [row for row in catalogue.read_text().splitlines(keepends=True) if '"pdf"' not in row]
    smaller = catalogue.with_name("smaller.jsonl")
    smaller.write_text("".join(rows))
    elsewhere = world.model_copy(update={"bundles": bundles.with_name("elsewhere")})
    build_bundle(smaller, fake, index=elsewhere)
    without = score_requests(open_bundle(elsewhere.bundles), [fitting], fake, DEPTH, progress)
    for stage in ("rerank", "embed"):
        found = sample(scored, stage, DEPTH)
        expected = sample([replace(without[0], num_golds=0)], stage, DEPTH)
        assert found.outcomes == ("answerable", "left out", "none")
        assert found.groups.tolist() == [0, 0, 1]
        assert found.labels.tolist() == [True, False, False]
        assert found.top_fits.tolist() == [True, False, False]
        for name, values in expected.features.items():
            assert found.features[name][1] == pytest.approx(values[0]), (stage, name)
        assert found.hit_fits.sum() == 1
        assert found.hit_owners.tolist() == [0] * DEPTH + [2] * DEPTH


def test_a_catalogue_of_nothing_but_fitting_skills_has_no_left_out_sample(bundles: Path, fake: Any) -> None:
    every = frozenset(open_bundle(bundles).corpus.skills.ids())
    scored = score_requests(open_bundle(bundles), [Asked(text="pdf", golds=every)], fake, DEPTH, progress)
    assert sample(scored, "rerank", DEPTH).outcomes == ("answerable",)


def test_weights_follow_the_shares_and_an_absent_kind_leaves_its_share_to_its_like() -> None:
    outcomes = ["answerable"] * 6 + ["left out"] * 6 + ["none"] * 2
    found = Weights(none_share=0.4, left_out_share=0.25).of(outcomes)
    assert found.mean() == pytest.approx(1)
    shares = [found[part].sum() / found.sum() for part in (slice(6), slice(6, 12), slice(12, 14))]
    assert shares == pytest.approx([0.6, 0.1, 0.3])
    alone = Weights(none_share=0.4, left_out_share=0.25).of(["answerable", "none"])
    assert (alone / alone.sum()).tolist() == pytest.approx([0.6, 0.4])
    assert np.allclose(Weights(none_share=0.5, left_out_share=0.0).of(outcomes)[6:12], 0)
