"""The rank gate: figures against a ranking written in plain Python, limits, requests and reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from skillserve.card import ModelCard, read_card, write_card
from skillserve.errors import CatalogueError, ParityError, UsageError
from skillserve.gate import GATES, ExportSection, Gate
from skillserve.runs import write_run
from skillserve.settings import ExportSettings
from skillserve.skillfile import read_qrels, read_queries, read_skills
from skillserve_export.families import family_of
from skillserve_export.gate import RankGate, judge_ranks
from skillserve_export.gate_requests import GateRequests, Pools, load_requests
from skillserve_export.graph import export_stock
from skillserve_export.parity import PackedGraph
from skillserve_export.ranks import measure_ranks
from skillserve_export.record import read_record
from skillserve_export.repository import export_model, verify_model
from skillserve_export.scorers import GraphScorer
from skillserve_export.stock import StockGraph

NDCG_TOLERANCE = 1e-12
STRICT = Gate(min_top1=1, min_overlap=1, max_ndcg_loss=0)


@dataclass(frozen=True)
class Fixed:
    """A scorer that knows its rows."""

    rows: np.ndarray
    name: str = "fixed rows"
    precision: str = "int8"
    facts: Mapping[str, str] = field(default_factory=dict)

    def score(self, sequences: Sequence[Any], *, progress: Any = None) -> np.ndarray:
        """As `skillserve.scoring.Scorer`."""
        assert len(sequences) == len(self.rows)
        progress(len(sequences))
        return self.rows


def random_requests(rng: np.random.Generator, num: int, skills: int) -> GateRequests:
    """Pools of a reranker: other skills for each request, one to three of them right."""
    ids = sorted((f"s{i}" for i in range(skills)), reverse=True)
    pools = [np.sort(rng.choice(skills, rng.integers(1, skills), replace=False)) for _ in range(num)]
    qrels = {f"q{i}": {str(s): int(rng.integers(0, 3)) for s in rng.choice(ids, 3, replace=False)} for i in range(num)}
    return GateRequests(
        source="random",
        digest=None,
        query_ids=[f"q{i}" for i in range(num)],
        skill_ids=ids,
        sequences=[np.array([1], np.int32)] * sum(map(len, pools)),
        qrels=qrels,
        pools=Pools("random", pools, [np.zeros(len(pool), np.float32) for pool in pools], 0.0),
    )


def plain_ranking(scores: dict[str, float]) -> list[str]:
    """Best first, equal scores by id, descending."""
    return sorted(sorted(scores, reverse=True), key=lambda skill: -scores[skill])


def plain_ndcg(ranking: list[str], relevance: dict[str, int]) -> float:
    gain = sum(relevance.get(skill, 0) / math.log2(place + 2) for place, skill in enumerate(ranking[:10]))
    best = sorted(relevance.values(), reverse=True)[:10]
    ideal = sum(value / math.log2(place + 2) for place, value in enumerate(best))
    return gain / ideal if ideal else 0.0


@pytest.mark.parametrize("seed", range(20))
def test_figures_equal_those_of_a_ranking_in_plain_python(seed: int) -> None:
    """Scores of few values, so that most of them tie, in the candidate and in the reference."""
    rng = np.random.default_rng(seed)
    requests = random_requests(rng, num=12, skills=30)
    wanted, found = (rng.integers(0, 6, len(requests.sequences)).astype(np.float32) for _ in range(2))
    figures = measure_ranks(requests, found, wanted)
    assert requests.pools is not None
    at, top1, overlaps, differences = 0, [], [], []
    for query, pool in zip(requests.query_ids, requests.pools.skills, strict=True):
        names = [requests.skill_ids[row] for row in pool]
        truth = {name: float(wanted[at + i]) for i, name in enumerate(names)}
        guess = {name: float(found[at + i]) for i, name in enumerate(names)}
        at += len(pool)
        mine, ideal = plain_ranking(guess)[:10], plain_ranking(truth)[:10]
        top1.append(truth[mine[0]] == max(truth.values()))
        # What the reference cannot tell from its tenth might as well have been its tenth.
        overlaps.append(sum(truth[name] >= truth[ideal[-1]] for name in mine) / len(mine))
        relevance = dict(requests.qrels[query])
        differences.append(plain_ndcg(mine, relevance) - plain_ndcg(ideal, relevance))
    assert figures.top1 == sum(top1) / 12
    assert figures.overlap == pytest.approx(sum(overlaps) / 12, abs=1e-12)
    assert figures.ndcg is not None
    assert figures.ndcg.difference.mean == pytest.approx(sum(differences) / 12, abs=NDCG_TOLERANCE)
    assert figures.ndcg.difference.low <= figures.ndcg.difference.mean <= figures.ndcg.difference.high
    assert figures.drift_max == np.abs(found - wanted).max()
    assert figures.drift_mean == pytest.approx(np.abs(found - wanted).mean(), rel=1e-6)


def test_without_ties_the_overlap_is_that_of_two_sets() -> None:
    rng = np.random.default_rng(3)
    requests = random_requests(rng, num=8, skills=40)
    wanted, found = (rng.permutation(len(requests.sequences)).astype(np.float32) for _ in range(2))
    figures = measure_ranks(requests, found, wanted)
    assert requests.pools is not None
    at = 0
    for each, pool in zip(figures.requests, requests.pools.skills, strict=True):
        part = slice(at, at + len(pool))
        at += len(pool)
        tops = [set(np.argsort(-rows[part])[:10].tolist()) for rows in (found, wanted)]
        assert each.overlap == len(tops[0] & tops[1]) / len(tops[0])


def test_an_embedder_searches_the_catalogue_exactly() -> None:
    """Against products summed in plain Python; a skill that stands twice ties with itself."""
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(3 + 20, 4)).astype(np.float32)
    rows[3 + 7] = rows[3 + 2]
    requests = GateRequests(
        source="", digest=None, query_ids=["a", "b", "c"], skill_ids=[f"{i:02}" for i in reversed(range(20))],
        sequences=[np.array([1], np.int32)] * 23,
    )  # fmt: skip
    for query, pool in zip(rows[:3], requests.ranked_pools(rows), strict=True):
        for row, score in zip(pool.skills, pool.final, strict=True):
            assert score == pytest.approx(
                math.fsum(float(a) * float(b) for a, b in zip(query, rows[3 + row], strict=True)), abs=1e-6
            )
        assert pool.final[7] == pool.final[2]
    assert measure_ranks(requests, rows, rows).ndcg is None


def test_the_final_score_of_a_reranker_is_what_is_ranked() -> None:
    """A first stage that overrules the logits: candidate and reference agree whatever their logits say."""
    rng = np.random.default_rng(9)
    requests = random_requests(rng, num=5, skills=30)
    assert requests.pools is not None
    near = [rng.permutation(len(pool)).astype(np.float32) for pool in requests.pools.skills]
    heavy = Pools("", requests.pools.skills, near, similarity_weight=1000.0)
    requests = GateRequests(
        source="", digest=None, query_ids=requests.query_ids, skill_ids=requests.skill_ids,
        sequences=requests.sequences, qrels=requests.qrels, pools=heavy,
    )  # fmt: skip
    wanted, found = (rng.normal(size=len(requests.sequences)).astype(np.float32) for _ in range(2))
    figures = measure_ranks(requests, found, wanted)
    assert figures.top1 == figures.overlap == 1
    assert figures.drift_max == pytest.approx(np.abs(found - wanted).max())


@pytest.fixture
def tiny_card(tiny_reranker: Path) -> ModelCard:
    return read_card(tiny_reranker)


def with_gate(card: ModelCard, gate: Gate) -> ModelCard:
    return card.model_copy(update={"export": ExportSection(gate={"int8": gate})})


@pytest.mark.parametrize(
    ("gate", "failing"),
    [
        (Gate(min_top1=0, min_overlap=0, max_ndcg_loss=100), []),
        (Gate(min_top1=1, min_overlap=0, max_ndcg_loss=100), ["top-1 agreement"]),
        (Gate(min_top1=0, min_overlap=1, max_ndcg_loss=100), ["top-10 overlap"]),
        (Gate(min_top1=0, min_overlap=0, max_ndcg_loss=0), ["NDCG@10"]),
        (STRICT, ["top-1 agreement", "top-10 overlap", "NDCG@10"]),
    ],
)
def test_every_limit_of_the_card_can_fail(tiny_card: ModelCard, gate: Gate, failing: list[str]) -> None:
    rng = np.random.default_rng(1)
    requests = random_requests(rng, num=10, skills=40)
    wanted = rng.normal(size=len(requests.sequences)).astype(np.float32)
    found = wanted + rng.normal(size=len(wanted)).astype(np.float32)
    verdict = judge_ranks(with_gate(tiny_card, gate), Fixed(found), Fixed(wanted), requests)
    assert [check.name for check in verdict.checks if not check.passed] == failing
    same = judge_ranks(with_gate(tiny_card, STRICT), Fixed(wanted), Fixed(wanted), requests)
    assert same.passed
    same.require(fix="")


def test_a_loss_that_cannot_be_ruled_out_fails(tiny_card: ModelCard) -> None:
    """One request of twelve swaps its right skill away: the mean is within the limit, the interval's end is not."""
    pool = np.arange(2)
    requests = GateRequests(
        source="twelve", digest=None, query_ids=[f"q{i}" for i in range(12)], skill_ids=["b", "a"],
        sequences=[np.array([1], np.int32)] * 24, qrels={f"q{i}": {"b": 1} for i in range(12)},
        pools=Pools("", [pool] * 12, [np.zeros(2, np.float32)] * 12, 0.0),
    )  # fmt: skip
    wanted = np.tile(np.array([1, 0], np.float32), 12)
    found = wanted.copy()
    found[:2] = 0, 1
    loss = 100 * (1 - 1 / math.log2(3)) / 12
    gate = Gate(min_top1=0, min_overlap=0, max_ndcg_loss=loss * 1.5)
    verdict = judge_ranks(with_gate(tiny_card, gate), Fixed(found), Fixed(wanted), requests)
    assert verdict.figures is not None
    assert verdict.figures.ndcg is not None
    assert 100 * verdict.figures.ndcg.difference.mean == pytest.approx(-loss)
    assert not verdict.passed
    with pytest.raises(ParityError, match=r"NDCG@10.*lower end.*rank gate to pass on twelve"):
        verdict.require(fix="Do something.")


def test_scores_that_are_not_finite_end_the_comparison(tiny_card: ModelCard) -> None:
    requests = random_requests(np.random.default_rng(1), num=3, skills=10)
    wanted = np.ones(len(requests.sequences), np.float32)
    found = wanted.copy()
    found[2] = np.nan
    verdict = judge_ranks(tiny_card, Fixed(found), Fixed(wanted), requests)
    assert [check.name for check in verdict.checks] == ["finite scores"]
    assert not verdict.passed


def test_limits_change_no_digest_and_have_defaults(tiny_embedder: Path, tmp_path: Path) -> None:
    for path in tiny_embedder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = read_card(tmp_path)
    assert before.gate("bf16") == GATES["bf16"]
    card = json.loads((tmp_path / "card.json").read_text())
    card["export"] = {"gate": {"bf16": STRICT.model_dump()}}
    (tmp_path / "card.json").write_text(json.dumps(card))
    after = read_card(tmp_path, verify_weights=True)
    assert after.digest == before.digest == write_card(tmp_path, after).digest
    assert after.gate("bf16") == STRICT
    assert after.gate("fp16") == GATES["fp16"]


@pytest.fixture(scope="module")
def settings(tiny_embedder: Path, tiny_reranker: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSettings:
    """A repository with both models, and a gate of few requests."""
    settings = ExportSettings(
        repository=tmp_path_factory.mktemp("gated") / "models", gate_requests=12, gate_depth=8, max_request_tokens=8_192
    )
    for weights in (tiny_embedder, tiny_reranker):
        export_model(weights, settings)
    return settings


@pytest.mark.parametrize("weights", ["tiny_embedder", "tiny_reranker"])
def test_the_same_weights_pass_on_judged_requests(
    weights: str, settings: ExportSettings, sample_data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """And the report says on what."""
    folder: Path = request.getfixturevalue(weights)
    gate = RankGate(settings=settings, data=sample_data, report=tmp_path / "report")
    verdict = verify_model(folder, settings, gate=gate).verdict
    assert verdict is not None
    assert verdict.passed, verdict.checks
    assert [check.name for check in verdict.checks] == ["finite scores", "top-1 agreement", "top-10 overlap", "NDCG@10"]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "gate.json",
        "gate.md",
        "scores.png",
        "overlap.png",
    }
    report = json.loads((tmp_path / "report" / "gate.json").read_text())
    assert report["passed"]
    assert report["model"]["digest"] == read_card(folder).digest
    assert report["requests"]["num_requests"] == 12
    assert report["requests"]["num_skills"] == 108
    assert len(report["requests"]["digest"]) == 64
    assert (
        report["candidate"]["graph_digest"]
        in (settings.repository / verdict_folder(weights) / "config.pbtxt").read_text()
    )
    assert len(report["per_request"]) == 12
    pool = report["requests"]["candidates"]
    assert pool is None if weights == "tiny_embedder" else pool.startswith("the first 8 of tiny-embedder-mean")
    assert "Rank gate: passed" in (tmp_path / "report" / "gate.md").read_text()
    assert (tmp_path / "report" / "scores.png").read_bytes().startswith(b"\x89PNG")


def verdict_folder(weights: str) -> str:
    return weights.replace("tiny", "skill")


def perturbed(graph: Path, target: Path) -> Path:
    """The graph with noise on its largest weights, as large as they are."""
    model = onnx.load(graph)
    tensor = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    values = onnx.numpy_helper.to_array(tensor)
    noise = np.random.default_rng(0).normal(size=values.shape) * values.std()
    tensor.CopyFrom(onnx.numpy_helper.from_array((values + noise).astype(np.float32), tensor.name))
    onnx.save(model, target)
    return target


@pytest.mark.parametrize("weights", ["tiny_embedder", "tiny_reranker"])
def test_perturbed_weights_fail_and_the_report_says_why(
    weights: str, settings: ExportSettings, sample_data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(weights)
    card = read_card(folder)
    served = settings.repository / verdict_folder(weights)
    reference = tmp_path / "stock.onnx"
    export_stock(family_of(card).load(folder, card), card, reference)
    graph = PackedGraph(perturbed(served / "1" / "model.onnx", tmp_path / "moved.onnx"))
    candidate = GraphScorer(graph=graph, card=card, layout="packed", precision="int8", graph_digest="")
    gate = RankGate(settings=settings, data=sample_data, report=tmp_path / "report")
    verdict = gate.judge(card, folder, candidate, StockGraph(reference, card))
    assert not verdict.passed
    with pytest.raises(ParityError, match=r"top-1 agreement.*report: .*/report\)"):
        verdict.require(fix="Do not serve it.")
    page = (tmp_path / "report" / "gate.md").read_text()
    assert "Rank gate: FAILED" in page
    assert "| top-1 agreement | **NO** |" in page
    assert "requests moved" in page


def test_a_run_brings_the_candidates(
    tiny_reranker: Path, settings: ExportSettings, sample_data: Path, tmp_path: Path
) -> None:
    """At most the first of each request, cut at the depth; a run that lacks requests is refused."""
    queries = read_queries(sample_data / "queries" / "test.jsonl")
    skills = [skill.id for skill in read_skills(sample_data / "skills" / "test.jsonl")]
    rng = np.random.default_rng(2)
    run = {
        query.id: {skill: float(rng.normal()) for skill in rng.choice(skills, 15, replace=False)} for query in queries
    }
    write_run(tmp_path / "some.run", run)
    card = read_card(tiny_reranker)
    requests = load_requests(card, tiny_reranker, settings, data=sample_data, run=tmp_path / "some.run")
    assert requests.pools is not None
    assert len(requests.sequences) == 12 * 8
    for query, pool, near in zip(requests.query_ids, requests.pools.skills, requests.pools.first_stage, strict=True):
        best = sorted(run[query], key=lambda skill: -run[query][skill])[:8]
        assert [requests.skill_ids[row] for row in pool] == sorted(best, reverse=True)
        assert near.tolist() == [np.float32(run[query][skill]) for skill in sorted(best, reverse=True)]
    judged = read_qrels(sample_data / "qrels" / "test.jsonl")
    assert {query: dict(judged[query]) for query in requests.query_ids} == requests.qrels
    write_run(tmp_path / "short.run", dict(list(run.items())[:3]))
    with pytest.raises(CatalogueError, match="candidates for every judged request"):
        load_requests(card, tiny_reranker, settings, data=sample_data, run=tmp_path / "short.run")


def test_a_reranker_without_candidates_and_a_run_without_requests_are_refused(
    tiny_reranker: Path, sample_data: Path, tmp_path: Path
) -> None:
    card, empty = read_card(tiny_reranker), ExportSettings(repository=tmp_path)
    with pytest.raises(UsageError, match="--run FILE"):
        load_requests(card, tiny_reranker, empty, data=sample_data, run=None)
    with pytest.raises(UsageError, match="--data FOLDER"):
        load_requests(card, tiny_reranker, empty, data=None, run=tmp_path / "some.run")


@pytest.mark.parametrize("weights", ["tiny_embedder", "tiny_reranker"])
def test_random_words_are_compared_but_judged_by_nobody(
    weights: str, settings: ExportSettings, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    gate = RankGate(settings=settings, report=tmp_path)
    verdict = verify_model(request.getfixturevalue(weights), settings, gate=gate).verdict
    assert verdict is not None
    assert verdict.passed
    assert [check.name for check in verdict.checks] == ["finite scores", "top-1 agreement", "top-10 overlap"]
    assert "NDCG is not judged" in (tmp_path / "gate.md").read_text()


def test_a_report_that_cannot_be_written_is_told_before_the_work(settings: ExportSettings, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UsageError, match="--report"):
        RankGate(settings=settings, report=tmp_path / "taken")


def test_a_report_stands_beside_the_repository(tiny_embedder: Path, settings: ExportSettings) -> None:
    verify_model(tiny_embedder, settings, gate=RankGate(settings=settings))
    own = f"skill_embedder-fp32-{read_card(tiny_embedder).short_digest}"
    assert (settings.repository.parent / "reports" / own / "gate.json").is_file()
    read_record(settings.repository / "skill_embedder")  # the model's folder is as it was
