"""Sweeps: the grid, the fronts against brute force, what is recommended, and one small real run."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.cli import main
from skillserve.config import load_settings
from skillserve.errors import ConfigError, UsageError
from skillserve.recommendation import Asking, ServedAs, Tuning, read_recommendation
from skillserve.settings import (
    BenchSettings,
    ClientSettings,
    ExportSettings,
    IndexSettings,
    ServeSettings,
    SweepSettings,
)
from skillserve_bench import cli_sweep
from skillserve_bench.environment import observe
from skillserve_bench.intervals import Estimate
from skillserve_bench.peers.ranking import Ranking
from skillserve_bench.scenarios.sweep import Sweep
from skillserve_bench.sweep.choice import choose, front_of, recommendation_of
from skillserve_bench.sweep.front import Standing, dominators, told_apart
from skillserve_bench.sweep.grid import Host, Point, Subject, make_grid, names_apart
from skillserve_bench.sweep.record import Swept
from skillserve_bench.sweep.trials import Course, Trial
from skillserve_bench.sweep.words import findings_of
from skillserve_client.quality import Judged
from skillserve_serving.profile import tuned
from skillserve_serving.repository import read_repository

BOTH = {
    "skill_embedder": ServedAs(digest="e" * 64, precision="fp32"),
    "skill_reranker": ServedAs(digest="f" * 64, precision="fp32"),
}


def subject(name: str, models: dict[str, ServedAs] | None = None) -> Subject:
    """A repository that nobody opens."""
    return Subject(repository=Path(name), name=name, models=models or BOTH)


@dataclass(slots=True, kw_only=True)
class Known(Trial):
    """A trial whose figures are given."""

    p90: Estimate
    rate: Estimate
    faults: list[str] = field(default_factory=list)

    def latency_ms(self, share: float) -> Estimate:
        """The same for every share."""
        assert 0 < share < 1
        return self.p90

    @property
    def per_s(self) -> Estimate:
        """As given."""
        return self.rate

    @property
    def objections(self) -> list[str]:
        """As given."""
        return self.faults

    @property
    def counts(self) -> bool:
        """Unless something is wrong."""
        return not self.faults


def trial(number: int, p90: float, per_s: float, ndcg: float, *, where: Subject | None = None, **more: Any) -> Known:
    """A point with intervals of 10 %."""
    host = Host(subject=where or subject("models"), tuning=Tuning(num_threads=number), name=f"{number} threads")
    asking = Asking(candidates=50, rerank_depth=10, max_request_tokens=4_096)
    return Known(
        point=Point(number=number, host=host, asking=asking, name=host.name),
        p90=Estimate(p90, 0.9 * p90, 1.1 * p90),
        rate=Estimate(per_s, 0.9 * per_s, 1.1 * per_s),
        ranking=Ranking(values=(ndcg,) * 4, num_answered=4),
        server="Triton 2.51.0 (embedded)",
        **more,
    )


def test_a_grid_is_every_combination_named_by_what_varies() -> None:
    settings = SweepSettings(threads=(1, 2), max_queue_delay_us=(500,), candidates=(10, 50), rerank_depths=(0, 20))
    points = make_grid([subject("fp32"), subject("int8", {"skill_embedder": BOTH["skill_embedder"]})], settings)
    # Depth 20 of 10 candidates is none of its own, and without a reranker the depth is 0.
    assert [(point.asking.candidates, point.asking.rerank_depth) for point in points] == [
        *[(10, 0), (50, 0), (50, 20)] * 2,
        *[(10, 0), (50, 0)] * 2,
    ]
    assert points[2].title == "3: fp32, 1 thread, 50 candidates, 20 reranked"
    assert {point.host.tuning.max_queue_delay_microseconds for point in points} == {500}
    assert len({point.host.name for point in points}) == 4
    (only,) = make_grid([subject("models")], SweepSettings(rerank_depths=(5,)))
    assert only.name == "the only point"
    assert only.host.tuning.changes == {}


def test_repositories_are_named_by_as_many_folders_as_tell_them_apart() -> None:
    paths = [Path(each) for each in ("/r/fp32/out/models", "/r/int8/out/models", "/r/old", "/models", "/out/models")]
    assert names_apart(paths) == ["fp32/out/models", "int8/out/models", "old", "/models", "/out/models"]


def test_no_two_repositories_share_a_bundle(tmp_path: Path) -> None:
    """Names that become one when `/` is replaced, too: the second would be searched in the index of the first."""
    subjects = [subject("a/b"), subject("a_b")]
    course = Course(
        make_grid(subjects, SweepSettings(threads=(1, 2))),
        data=tmp_path,
        judged=Judged(queries=[], qrels={}),
        bundles=tmp_path,
        sweep=SweepSettings(),
        bench=BenchSettings(),
        client=ClientSettings(),
        index=IndexSettings(),
    )
    assert len({course.bundles[each.repository] for each in subjects}) == 2


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(UsageError, match="below the rerank depths"):
        make_grid([subject("models")], SweepSettings(candidates=(5,), rerank_depths=(10, 20)))
    with pytest.raises(ConfigError, match=r"--threads.*the grid would be empty"):
        load_settings(flags={"sweep.threads": ","}, environ={})
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        load_settings(flags={"sweep.instances": "1,0"}, environ={})
    assert load_settings(flags={"sweep.threads": "2,1,2"}, environ={}).sweep.threads == (2, 1)


@pytest.mark.parametrize("less_is_better", [True, False])
def test_the_front_is_what_a_scan_by_speed_leaves(less_is_better: bool) -> None:  # noqa: FBT001
    """Sorted by speed, a point is on the front if its quality is above that of all faster ones. Ties are frequent."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        speeds, qualities = rng.integers(1, 9, size=12), rng.integers(0, 5, size=12) / 4
        standings = [
            Standing(quality=float(quality), speed=Estimate(float(speed)), less_is_better=less_is_better)
            for speed, quality in zip(speeds, qualities, strict=True)
        ]
        expected, best = set(), -1.0
        for speed in sorted(set(speeds.tolist()), reverse=not less_is_better):
            same = [i for i in range(12) if speeds[i] == speed]
            top = max(qualities[same])
            if top > best:
                expected |= {i for i in same if qualities[i] == top}
                best = top
        found = dominators(standings)
        assert {i for i, by in enumerate(found) if by is None} == expected
        assert all(by is None or standings[by].beats(standings[i]) for i, by in enumerate(found))


def test_intervals_that_meet_or_are_not_bounded_tell_nothing_apart() -> None:
    one = Estimate(1.0, 0.9, 1.1)
    assert told_apart(one, Estimate(2.0, 1.2, 3.0))
    assert told_apart(Estimate(2.0, 1.2, 3.0), one)
    assert not told_apart(one, Estimate(1.2, 1.05, 1.4))
    assert not told_apart(one, Estimate(9.0, None, 10.0))


def test_recommended_is_the_fastest_that_gives_up_little_quality() -> None:
    trials = [
        trial(1, 100.0, 30.0, 0.80),
        trial(2, 40.0, 20.0, 0.795),
        trial(3, 5.0, 500.0, 0.70),
        trial(4, 1.0, 900.0, 0.90, faults=["failed: 3 ServerError"]),
        trial(5, 42.0, 31.0, 0.795),
    ]
    lone, many = choose(trials, "latency", quality_loss=0.01), choose(trials, "throughput", quality_loss=0.01)
    assert lone is not None
    assert many is not None
    assert (lone.trial.point.number, lone.best.point.number) == (2, 1)
    assert [each.point.number for each in lone.equals] == [5]
    assert many.trial.point.number == 5
    strict = choose(trials, "latency", quality_loss=0.0)
    assert strict is not None
    assert strict.trial is strict.best is trials[0]
    front = front_of(trials, "latency")
    assert [front.remark(each) for each in trials] == [
        "on it", "on it", "on it", "not valid", "by 2?"
    ]  # fmt: skip
    assert [each.point.number for each in front.members] == [1, 2, 3]
    assert choose(trials[3:4], "latency", quality_loss=0.0) is None


def test_a_ranking_with_requests_that_were_not_answered_does_not_count() -> None:
    point = trial(1, 1.0, 1.0, 0.5).point
    (said,) = Trial(point=point, ranking=Ranking(values=(1.0, 0.0), num_answered=1)).objections
    assert said.startswith("quality: 1 request without an answer")


def test_each_repository_has_a_recommendation_of_its_own(tmp_path: Path) -> None:
    int8 = {name: ServedAs(digest=each.digest, precision="int8") for name, each in BOTH.items()}
    trials = [trial(1, 10.0, 30.0, 0.8), trial(2, 5.0, 60.0, 0.75, where=subject("int8", int8))]
    found = recommendation_of(trials, observe(), num_clients=4, quality_loss=0.01)
    assert found is not None
    assert [each.repository for each in found.recommended] == ["models", "int8"]
    part = found.of_models(int8, path=tmp_path)
    assert part.profiles["latency"].serve == Tuning(num_threads=2)
    assert part.profiles["throughput"].figures["searches_per_s"] == 60.0


def test_the_report_says_what_is_recommended_first_and_names_what_failed() -> None:
    trials = [trial(1, 100.0, 30.0, 0.80), trial(2, 40.0, 20.0, 0.795), trial(3, 9.0, 9.0, 0.1, faults=["server: no"])]
    swept = Swept(trials=trials, recommendation=None, sweep=SweepSettings(), bench=BenchSettings(), data="108 skills.")
    found = findings_of(swept)
    assert not found.passed
    assert found.summary[0].startswith("For latency take point 2: 2 threads: 40.0 [36.0, 44.0] ms at p90")
    assert "`skillserve serve --repository models --num-threads 2`" in found.summary[0]
    assert "The most accurate, point 1, has 0.5 points" in found.summary[0]
    assert found.summary[-1] == "NOT VALID: point 3: 3 threads: server: no"
    assert len(found.draw()) == 2
    json.dumps(found.figures, allow_nan=False)
    kept = "Bundles keep up to 320 token embeddings a skill."
    assert kept not in found.method
    assert kept in findings_of(replace(swept, token_embeddings=320)).method


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    """`bench sweep --json`; returns its exit code and the object on stdout."""
    code = main(["bench", "sweep", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_what_keeps_a_sweep_from_beginning_is_told_before_a_server_is_started(
    capsys: pytest.CaptureFixture[str], sample_data: Path, tmp_path: Path
) -> None:
    code, error = run(capsys, "--repository", tmp_path, "--data", sample_data)
    assert (code, error["error"]) == (4, "RepositoryError")
    code, error = run(capsys, "--repository", tmp_path, "--repository", tmp_path, "--data", sample_data)
    assert (code, error["error"]) == (2, "UsageError")
    code, error = run(capsys, "--repository", tmp_path, "--data", sample_data, "--recommend-to", tmp_path / "no" / "x")
    assert code == 4  # a folder that can be made is made
    (tmp_path / "file").write_text("")
    code, error = run(
        capsys, "--repository", tmp_path, "--data", sample_data, "--recommend-to", tmp_path / "file" / "x"
    )
    assert (code, error["error"]) == (2, "ConfigError")
    assert error["subject"] == f"recommendation `{tmp_path / 'file' / 'x'}`"
    code, error = run(capsys, "--repository", tmp_path, "--data", sample_data, "--recommend-to", tmp_path)
    assert (code, error["subject"]) == (2, f"recommendation `{tmp_path}`")


def test_a_recommendation_that_finds_no_room_after_all_is_an_error_of_its_own_that_loses_no_figure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a point failed, which alone would be exit 1."""
    target, page = tmp_path / "recommendation.json", tmp_path / "sweep.json"
    trials = [trial(1, 10.0, 30.0, 0.8), trial(2, 9.0, 9.0, 0.1, faults=["server: no"])]
    recommendation = recommendation_of(trials, observe(), num_clients=4, quality_loss=0.01)
    swept = Swept(
        trials=trials, recommendation=recommendation, sweep=SweepSettings(), bench=BenchSettings(), data="108 skills."
    )

    def measured(*_: object, **__: object) -> Sweep:
        target.mkdir()  # there was a place when the sweep began
        return Sweep(findings=findings_of(swept), recommendation=recommendation)

    monkeypatch.setattr(cli_sweep, "measure_sweep", measured)
    code, error = run(capsys, "--repository", tmp_path, "--data", tmp_path, "--recommend-to", target, "--out", page)
    assert code == error["exit_code"] == 2
    assert error["subject"] == f"recommendation `{target}`"
    assert "--recommend-to" in error["fix"]
    assert error["figures"]["recommendation"] == json.loads(page.read_text())["figures"]["recommendation"] is not None


@pytest.mark.e2e
def test_a_sweep_measures_all_that_starts_and_recommends_what_serve_can_set(
    capsys: pytest.CaptureFixture[str], tiny_embedder: Path, tiny_reranker: Path, sample_data: Path, tmp_path: Path
) -> None:
    """One repository is damaged: its points are named with the reason, the others are measured, and the exit code is 1.

    Which point is fastest is not asserted, only that it is one of those that were measured.
    """
    from skillserve_export import export_model  # torch is slow to import, and no other test here needs it

    good, bad = tmp_path / "good", tmp_path / "bad"
    for weights in (tiny_embedder, tiny_reranker):
        export_model(weights, ExportSettings(repository=good))
    shutil.copytree(good, bad)
    graph = bad / "skill_embedder" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-100])
    target, page = tmp_path / "recommendation.json", tmp_path / "sweep.html"
    small = ["--seconds", 1, "--rounds", 1, "--num-judged", 20, "--num-clients", 4, "--num-workers", 1]
    code, found = run(
        capsys, "--repository", good, "--repository", bad, "--data", sample_data, "--threads", 1, "--rerank-depths",
        "0,5", "--recommend-to", target, "--out", page, *small,
    )  # fmt: skip
    assert code == 1, found
    points = found["figures"]["points"]
    assert [point["repository"] for point in points] == ["good", "good", "bad", "bad"]
    assert [point["search"]["rerank_depth"] for point in points] == [0, 5, 0, 5]
    for point in points[:2]:
        assert [each for each in point["objections"] if "invalid: requests started" not in each] == []
        assert point["serve"] == {"num_threads": 1}
        assert 0 < point["latency_ms"]["p50"]["value"] <= point["latency_ms"]["p90"]["value"]
        assert point["searches_per_s"]["value"] > 0
        assert 0 <= point["ndcg@10"]["mean"] <= 1
    assert all("no sound ONNX model" in point["objections"][0] for point in points[2:])
    assert "bad, 5 reranked" in page.read_text()
    if all(point["objections"] for point in points):
        return  # a busy machine sent late in both good ones, says so, and then there is nothing to recommend
    written = read_recommendation(target)
    assert [each.repository for each in written.recommended] == ["good"]
    (part,) = written.recommended
    assert part.models["skill_embedder"].precision == "fp32"
    assert part.profiles["latency"].serve.changes == {"num_threads": 1}
    serve = ServeSettings(repository=good, profile="throughput", recommendation=target)
    assert tuned(serve, read_repository(good)).tuning == Tuning(num_threads=1)
    assert found["figures"]["chosen"]["throughput"] in {1, 2}
