"""Systems side by side: figures against a computation by hand, from rankings that were written down."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from skillserve.cli import main
from skillserve.collection import Collection, read_split
from skillserve.records import Run
from skillserve_bench.scenarios import ranking


def by_hand(run: Run, data: Path) -> float:
    """NDCG@10, in points."""
    collection = read_split(data, "test")
    found = []
    for query in collection.queries:
        golds = collection.qrels[query.id]
        order = sorted(run[query.id], key=lambda skill: -run[query.id][skill])[:10]
        gain = sum(1 / np.log2(place + 2) for place, skill in enumerate(order) if skill in golds)
        found.append(gain / sum(1 / np.log2(place + 2) for place in range(min(10, len(golds)))))
    return 100 * float(np.mean(found))


def first_places(data: Path, *, golds_at: int) -> Run:
    """Every request's skills begin at this place; the others stand in the order of the catalogue."""
    collection = read_split(data, "test")
    run: dict[str, dict[str, float]] = {}
    for query in collection.queries:
        golds = sorted(collection.qrels[query.id])
        others = [skill.id for skill in collection.skills if skill.id not in golds][:100]
        order = [*others[:golds_at], *golds, *others[golds_at:]]
        run[query.id] = {skill: float(len(order) - place) for place, skill in enumerate(order)}
    return run


def write(path: Path, run: Run) -> str:
    """A TREC run file, as a system's spec."""
    lines = [
        f"{query} Q0 {skill} {place} {score} test\n"
        for query, scores in run.items()
        for place, (skill, score) in enumerate(scores.items(), 1)
    ]
    path.write_text("".join(lines))
    return f"run:{path}"


def test_the_last_system_is_compared_with_each_other_one(
    sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [first_places(sample_data, golds_at=place) for place in (5, 2, 0)]
    specs = [write(tmp_path / f"{place}.run", run) for place, run in enumerate(runs)]
    page = tmp_path / "ranking.md"
    command = ["bench", "ranking", *specs, "--data", str(sample_data), "--out", str(page)]
    assert main([*command, "--resamples", "200", "--json"]) == 0
    wanted = [by_hand(run, sample_data) for run in runs]
    figures = json.loads(capsys.readouterr().out)["figures"]["split"]
    found = [100 * figures["systems"][spec]["metrics"]["ndcg@10"]["mean"] for spec in specs]
    assert found == pytest.approx(wanted)
    assert found[2] == pytest.approx(100.0)
    gains = {spec: 100 * figures["gains"][spec]["ndcg@10"]["mean"] for spec in specs[:2]}
    assert gains == pytest.approx({spec: wanted[2] - figure for spec, figure in zip(specs, wanted[:2], strict=False)})
    assert f"{wanted[2]:.2f} [100.0, 100.0]" in page.read_text()
    assert f"{wanted[2] - wanted[0]:+.2f} [" in page.read_text()


@dataclass
class Ranked:
    """A system whose rankings are known."""

    name: str
    run: Run
    digests: dict[str, str] = field(default_factory=lambda: {"embedder": "0" * 64})

    def rank(self, queries: object, skills: object, *, depth: int) -> Run:
        """The same whatever is asked."""
        assert queries
        assert skills
        assert depth >= 10
        return self.run


@pytest.mark.parametrize(("golds_at", "passed"), [(0, True), (1, False)])
def test_equal_weights_that_rank_differently_fail(
    sample_data: Path, monkeypatch: pytest.MonkeyPatch, golds_at: int, *, passed: bool
) -> None:
    systems = {
        "weights": Ranked("weights", first_places(sample_data, golds_at=0)),
        "server:bundles": Ranked("server:bundles", first_places(sample_data, golds_at=golds_at)),
    }
    monkeypatch.setattr(ranking, "open_system", lambda spec, _: systems[spec])
    findings = ranking.measure_ranking(list(systems), sample_data, pools=["split"], settings=ranking.Settings())
    assert findings.passed is passed
    assert ("NOT within 0.1 points" in findings.summary[-1]) is not passed


def test_both_pools_are_measured(sample_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, int] = {}

    class Counting(Ranked):
        def rank(self, queries: object, skills: object, *, depth: int) -> Run:
            sizes[str(len(sizes))] = len(skills)  # type: ignore[arg-type]
            return super().rank(queries, skills, depth=depth)

    one = Counting("one", first_places(sample_data, golds_at=0), {})
    monkeypatch.setattr(ranking, "open_system", lambda *_: one)
    findings = ranking.measure_ranking(["one"], sample_data, pools=["split", "union"], settings=ranking.Settings())
    pools: list[Collection] = [
        read_split(sample_data, "test", pool="split"),
        read_split(sample_data, "test", pool="union"),
    ]
    assert list(sizes.values()) == [len(pool.skills) for pool in pools]
    assert sizes["1"] > sizes["0"]
    assert len(findings.summary) == 2
    assert not any("gains" in table.title for table in findings.tables)
