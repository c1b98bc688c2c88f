"""Searches of a calibrated bundle: probabilities, abstaining, and what both depend on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.errors import BundleError, ServerOverloaded
from skillserve.records import Answer
from skillserve.settings import SearchSettings
from skillserve_client import AsyncSearcher, Bundle, Searcher, open_bundle
from skillserve_client.batch.crew import Alone
from skillserve_client.batch.engine import Engine
from skillserve_client.batch.rank import RankJob
from skillserve_client.batch.run import Run, Spec
from skillserve_client.bundle import read_files
from skillserve_client.calibration import (
    EMBED_DEPTH,
    Calibration,
    Curve,
    Fit,
    Knot,
    Point,
    StageCalibration,
)
from skillserve_client.plan import DEFAULT_DEPTH
from skillserve_client.versions import publish

FIT = Fit(log_loss=0.1, brier=0.1, ece=0.1)
LOGIT = Curve(kind="platt", features=("score",), coefficients=(1.0,), intercept=-1.5)
STEPPED = Curve(
    kind="isotonic",
    features=("gap", "background"),
    coefficients=(2.0, 1.0),
    intercept=0.25,
    knots=(Knot(z=0.0, probability=0.2), Knot(z=2.0, probability=0.9)),
)


def cut_of(curve: Curve, threshold: float) -> float:
    """The predictor whose probability this is, by bisection."""
    low, high = -50.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if curve.at(middle) < threshold else (low, middle)
    return high


def stage(depth: int, threshold: float, request: Curve = LOGIT) -> StageCalibration:
    point = Point(threshold=threshold, coverage=0.5, risk=0.1, injected=0.05, lost=0.1)
    return StageCalibration(
        depth=depth,
        request=request,
        hit=LOGIT,
        cut=cut_of(request, threshold),
        threshold=threshold,
        at_threshold=point,
        left_out_injected=0.5,
        request_fits={"platt": FIT},
        hit_fits={"platt": FIT},
        feature_losses={},
        points=(point,),
        bins=(),
    )


def calibrated(
    bundle: Bundle, *, rerank: StageCalibration, embed: StageCalibration, direction: tuple[float, ...] = ()
) -> Bundle:
    calibration = Calibration(
        created="2026-11-25T00:00:00.000+00:00",
        requests_digest="a" * 64,
        catalogue_digest=bundle.manifest.catalogue_digest,
        models=bundle.digests,
        none_share=0.5,
        left_out_share=0,
        false_injection=0.05,
        num_folds=5,
        seed=0,
        num_answerable=1,
        num_none=1,
        direction=direction,
        stages={"rerank": rerank, "embed": embed},
    )
    return replace(bundle, calibration=calibration)


@pytest.fixture
def bundle(bundles: Path) -> Bundle:
    """Reranked answers abstain below 0.5, embed-only ones below 0.9, which no similarity reaches."""
    return calibrated(
        open_bundle(bundles), rerank=stage(DEFAULT_DEPTH, 0.5), embed=stage(EMBED_DEPTH, 0.9, request=STEPPED)
    )


def test_a_batch_abstains_where_a_search_does(bundle: Bundle, fake: Any, tmp_path: Path) -> None:
    texts = ["resize photo", "rust", "send", "merge pdf table sheet"]
    requests = tmp_path / "requests.jsonl"
    requests.write_text("".join(json.dumps({"id": str(i), "query": text}) + "\n" for i, text in enumerate(texts)))
    settings = SearchSettings(top_k=3)
    with Engine(fake, num_workers=2, max_run_tokens=64, patience_s=0.0) as engine:
        spec = Spec(out=tmp_path / "out", engine_name="server", file_format="jsonl")
        job = RankJob.of([requests], bundle, settings)
        Run(job, Alone(job, engine), spec).carry_out()
    (file,) = (tmp_path / "out" / "shards").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    answers = [Searcher(bundle, fake, settings).search(text).to_dict() for text in texts]
    assert {row["status"] for row in rows} == {"ok", "abstained"}
    for row, answer in zip(rows, answers, strict=True):
        wanted = json.loads(json.dumps(answer))
        assert row == {"row": row["row"], "id": str(row["row"])} | {name: wanted[name] for name in row.keys() & wanted}
        assert row["probability"] is not None


def test_within_a_namespace_nothing_is_known_of_probabilities(bundle: Bundle, fake: Any) -> None:
    answer = Searcher(bundle, fake, SearchSettings(namespace="acme")).search("send")
    assert (answer.status, answer.probability, [hit.skill_id for hit in answer.hits]) == ("ok", None, ["pdf"])
    assert any("namespace" in note for note in answer.notes)


Search = Callable[..., Answer]


@pytest.fixture(params=["blocking", "asyncio"])
def search(request: pytest.FixtureRequest, bundle: Bundle, fake: Any) -> Search:
    class Awaitable:
        async def served(self, role: Any) -> Any:
            return fake.served(role)

        async def infer(self, role: Any, sequences: Any, **named: Any) -> Any:
            return fake.infer(role, sequences, **named)

    def run(query: str, **settings: Any) -> Answer:
        wanted = SearchSettings(**settings)
        if request.param == "blocking":
            return Searcher(bundle, fake, wanted).search(query)
        return asyncio.run(AsyncSearcher(bundle, Awaitable(), wanted).search(query))

    return run


def logistic(score: float) -> float:
    return float(1 / (1 + np.exp(1.5 - score)))


def test_a_request_that_fits_is_answered_with_probabilities(search: Search) -> None:
    answer = search("merge pdf")
    assert (answer.status, answer.hits[0].skill_id, answer.near_misses, answer.notes) == ("ok", "pdf", (), ())
    assert answer.probability == pytest.approx(logistic(answer.hits[0].score))
    assert [hit.probability for hit in answer.hits] == pytest.approx([logistic(hit.score) for hit in answer.hits])


def test_a_request_that_nothing_fits_abstains_and_shows_what_it_missed(search: Search) -> None:
    answer = search("zzz")
    assert (answer.status, answer.hits, answer.reranked) == ("abstained", (), True)
    assert answer.probability is not None
    assert answer.probability < 0.5
    assert len(answer.notes) == 1
    assert all(words in answer.notes[0] for words in (f"{answer.probability:.3f}", "0.500", "--no-abstain"))
    shown = search("zzz", abstain=False)
    assert (shown.status, shown.probability, shown.notes) == ("ok", answer.probability, ())
    assert shown.hits == answer.near_misses
    assert len(shown.hits) == 5
    assert json.loads(json.dumps(answer.to_dict()))["near_misses"][0]["skill_id"] == shown.hits[0].skill_id


def test_embed_only_answers_have_a_curve_and_a_threshold_of_their_own(search: Search) -> None:
    answer = search("merge pdf", rerank_depth=0)
    similarities = [hit.similarity for hit in answer.near_misses]
    z = 2 * (similarities[0] - similarities[1]) + np.mean(similarities) + 0.25
    assert answer.status == "abstained"
    assert answer.probability == pytest.approx(np.interp(z, [0, 2], [0.2, 0.9]))
    assert answer.near_misses[0].probability == pytest.approx(logistic(similarities[0]))


def test_a_degraded_answer_is_judged_by_the_stage_that_it_ended_in(search: Search, fake: Any) -> None:
    """It may abstain, for the embed-only threshold; that it was degraded too is in the notes."""
    fake.failures["reranker"] = ServerOverloaded("server", got="words", wanted="others", fix="Wait.")
    answer = search("merge pdf")
    assert (answer.status, answer.reranked) == ("abstained", False)
    assert "first stage" in answer.notes[0]
    assert "0.900" in answer.notes[1]
    shown = search("merge pdf", abstain=False)
    assert (shown.status, shown.probability) == ("degraded", answer.probability)


@pytest.mark.parametrize("depth", [0, DEFAULT_DEPTH])
@pytest.mark.parametrize("part_weight", [0, 1])
def test_a_leaning_is_that_of_the_whole_request_in_either_stage(
    depth: int, part_weight: float, bundles: Path, fake: Any
) -> None:
    """Along the vector of a skill, it is the similarity to that skill."""
    curve = Curve(kind="platt", features=("leaning",), coefficients=(2.0,), intercept=-1.0)
    plain = open_bundle(bundles)
    row = plain.corpus.skills.ids().index("pdf")
    (vector,) = fake.infer("embedder", plain.corpus.embedder.skills([plain.corpus.skills.skill(row)]))
    bundle = calibrated(
        plain,
        rerank=stage(DEFAULT_DEPTH, 0.5, curve),
        embed=stage(EMBED_DEPTH, 0.5, curve),
        direction=tuple(map(float, vector)),
    )
    assert bundle.calibration is not None
    bundle = replace(bundle, calibration=bundle.calibration.model_copy(update={"part_weight": part_weight}))
    settings = SearchSettings(rerank_depth=depth, abstain=False, part_weight=part_weight)
    answer = Searcher(bundle, fake, settings).search("Merge pdf. Send an email. Draw a chart. Commit it.")
    (hit,) = (hit for hit in answer.hits if hit.skill_id == "pdf")
    assert answer.probability == pytest.approx(1 / (1 + np.exp(1 - 2 * hit.similarity)))


LEANING = Curve(kind="platt", features=("score", "leaning"), coefficients=(1.0, 1.0), intercept=0.0)
LEANING_STAGES = {"embed": stage(EMBED_DEPTH, 0.5, LEANING), "rerank": stage(DEFAULT_DEPTH, 0.5)}


def test_another_depth_than_the_calibrated_one_has_no_probability(search: Search) -> None:
    """The highest of three scores is another quantity than the highest of twenty."""
    answer = search("zzz", rerank_depth=3)
    assert (answer.status, answer.probability, len(answer.hits)) == ("ok", None, 5)
    assert "calibrated for 20 reranked candidates, not 3" in answer.notes[0]
    assert all(hit.probability is None for hit in answer.hits)
    assert search("zzz", rerank_depth=3, abstain=False).notes == ()


def test_hits_behind_the_reranked_ones_have_no_probability(bundles: Path, fake: Any) -> None:
    bundle = calibrated(open_bundle(bundles), rerank=stage(2, 0.1), embed=stage(EMBED_DEPTH, 0.1))
    answer = Searcher(bundle, fake, SearchSettings(rerank_depth=2)).search("merge pdf")
    assert [hit.probability is None for hit in answer.hits] == [False, False, True, True, True]


def test_what_is_shown_changes_no_probability(search: Search) -> None:
    assert len({search("merge pdf", top_k=k, candidates=c).probability for k, c in ((1, 1), (5, 50))}) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"catalogue_digest": "9" * 64}, "catalogue 999"),
        ({"models": {"embedder": "9" * 64, "reranker": "f" * 64}}, "embedder 999"),
        ({"models": {"embedder": "e" * 64}, "stages": {"embed": stage(EMBED_DEPTH, 0.5)}}, "no such model"),
        ({"stages": {"embed": stage(EMBED_DEPTH, 0.5)}}, "needed"),
        ({"direction": (1.0,)}, "belongs"),
        ({"stages": LEANING_STAGES}, "belongs"),
        ({"stages": LEANING_STAGES, "direction": (1.0, 2.0)}, "2 dimensions"),
    ],
)
def test_a_calibration_of_something_else_is_refused(
    changes: dict[str, Any], said: str, bundle: Bundle, bundles: Path
) -> None:
    assert bundle.calibration is not None
    wrong = bundle.calibration.model_copy(update=changes).model_dump_json().encode()
    manifest = bundle.manifest
    publish(
        bundles,
        files={**read_files(bundle), "calibration.json": wrong},
        num_skills=manifest.num_skills,
        dim=manifest.dim,
        catalogue=manifest.catalogue_digest,
        models=manifest.models,
    )
    with pytest.raises(BundleError, match=said):
        open_bundle(bundles)


def test_requests_of_equal_probability_may_lie_on_both_sides_of_the_cut(bundles: Path, fake: Any) -> None:
    """A plateau of an isotonic curve ties them; their order does not."""
    flat = LOGIT.model_copy(update={"kind": "isotonic", "knots": (Knot(z=0.0, probability=0.7),)})
    rerank = stage(DEFAULT_DEPTH, 0.7).model_copy(update={"request": flat, "cut": 0.0})
    bundle = calibrated(open_bundle(bundles), rerank=rerank, embed=stage(EMBED_DEPTH, 0.9))
    answers = [Searcher(bundle, fake).search(query) for query in ("merge pdf", "zzz")]
    assert [answer.probability for answer in answers] == [0.7, 0.7]
    assert [answer.status for answer in answers] == ["ok", "abstained"]
