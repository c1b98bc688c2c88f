"""Peers in a report: ratios within the run, models that differ, and whoever did not take part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.settings import BenchSettings
from skillserve_bench.beside import Beside, beside_figures, beside_method, beside_summary, beside_tables
from skillserve_bench.environment import observe
from skillserve_bench.load.histogram import Histogram
from skillserve_bench.load.windows import Window
from skillserve_bench.measurement import Contender, Measurement
from skillserve_bench.page import html_page
from skillserve_bench.peers.field import Entrant, Field
from skillserve_bench.peers.ranking import Ranking
from skillserve_bench.peers.target import PeerTarget
from skillserve_bench.presentation import Material, findings_of
from skillserve_bench.processor import Usage
from skillserve_bench.rate_search import HighestRate
from skillserve_bench.report import Report, markdown
from skillserve_bench.scenarios.latency import Results
from skillserve_bench.supply import Texts, TextSupply

SETTINGS = BenchSettings(bound_ms=250.0)


def single(name: str, median_ms: float) -> Measurement:
    """Twenty windows of lone requests."""
    rng = np.random.default_rng(3)
    windows = [
        Window(
            number=i,
            num_scheduled=20,
            num_done=20,
            latencies=Histogram.of((median_ms * 1e6 * rng.lognormal(0, 0.1, 20)).astype(np.int64)),
            lags=Histogram.of(np.full(20, 100_000)),
            failures={},
        )
        for i in range(20)
    ]
    return Measurement(
        scenario="single",
        contender=name,
        load="closed loop, 1 client",
        offered_per_s=None,
        each=1,
        ended="completed",
        settled=True,
        used_up=False,
        num_warm_up=3,
        rounds=[windows],
        window_s=0.5,
        lag_p99_ms=0.1,
        busiest=0.1,
        num_workers=1,
        clock_step_s=0.0,
        usage=Usage(client=0.1, server=0.8, others=0.1),
        memory_mib=321.0,
        gpu=None,
        server={},
        first_error=None,
        seed=1,
    )


def entrant(name: str, reranker: str, threads: int | None) -> Entrant:
    """One who takes part."""
    supply = TextSupply(Texts(["a request"], seed=1, source="queries.jsonl"), str.encode)
    return Entrant(
        contender=Contender(name=name, target=PeerTarget(name, 1, 1.0, Path("stderr.txt")), supply=supply),
        about=f"what {name} is",
        version="1.2.3",
        payload=str.encode,
        reranker=reranker,
        threads=threads,
    )


@pytest.fixture
def material() -> Material:
    """Ours, a peer at three times the latency and a quarter of the rate, and one that could not be installed."""
    results = [
        Results(
            contender="search",
            bound_ms=250.0,
            measurements=[single("search", 10.0)],
            saturation_per_s=90.0,
            highest=HighestRate(80.0, 84.0),
        ),
        Results(
            contender="st",
            bound_ms=250.0,
            measurements=[single("st", 30.0)],
            saturation_per_s=25.0,
            highest=HighestRate(20.0, 25.0),
        ),
    ]
    field = Field(
        entrants=[entrant("search", "late (late-bert, aa)", None), entrant("st", "cross (bert, bb)", 2)],
        absent={"infinity": "No matching distribution found for infinity-emb"},
    )
    ranking = Ranking(values=(1.0, 0.6) * 10, num_answered=20)
    rankings = {"search": ranking, "st": Ranking(values=(1.0, 0.5) * 10, num_answered=19)}
    return Material(
        server="Triton 2.51.0 (embedded)",
        results=results,
        index=None,
        sources=[],
        lens={},
        settings=SETTINGS,
        beside=Beside(entered=field, rankings=rankings),
    )


def test_peers_stand_beside_us_with_ratios_and_quality_in_every_form(material: Material) -> None:
    beside = material.beside
    assert beside is not None
    figures: dict[str, Any] = beside_figures(beside, material.results, SETTINGS)
    assert figures["ours"] == "search"
    peer = figures["contenders"]["st"]
    assert peer["p50_ratio"]["value"] == pytest.approx(3.0, rel=0.01)
    assert peer["p50_ratio"]["low"] <= 3.0 <= peer["p50_ratio"]["high"]
    assert peer["rate_ratio"] == {"value": 4.0, "low": 80 / 25, "high": 84 / 20}
    assert peer["quality"] == {"ndcg": 0.75, "num_requests": 20, "num_answered": 19}
    summary = beside_summary(beside, material.results, SETTINGS)
    assert "ours carries 4.00 [3.20, 4.20] times its rate, p99 within 250 ms" in summary[0]
    assert "NDCG@10 75.00 (1 without an answer), ours 80.00" in summary[0]
    report = Report(findings=findings_of(material), environment=observe(), command="skillserve bench latency")
    assert report.findings.figures["peers"] == figures
    for text in (markdown(report), html_page(report, circumstances=[])):
        assert "4.00 [3.20, 4.20] times its rate" in text
        assert "No matching distribution found for infinity-emb" in text
    assert any("rerank with different models: cross (bert, bb), late" in line for line in beside_method(beside))


def test_bounds_of_their_own_stand_beside_the_rates(material: Material) -> None:
    beside = material.beside
    assert beside is not None
    own = SETTINGS.model_copy(update={"bound_factor": 10.0})
    material.results[0].bound_ms, material.results[1].bound_ms = 100.21, 18_483.04
    table = beside_tables(beside, material.results, own)[0]
    assert "requests/s with p99 within 10 times its lone median" in table.columns
    assert [row[3] for row in table.rows] == ["80.0 [80.0, 84.0] (100.2 ms)", "20.0 [20.0, 25.0] (18483 ms)"]
    assert "p99 within 10 times its lone median" in beside_summary(beside, material.results, own)[0]
    assert "search: 80.0 [80.0, 84.0] requests a second keep p99 within 100.2 ms." in findings_of(material).summary


def test_what_was_not_measured_has_no_figure(material: Material) -> None:
    beside = material.beside
    assert beside is not None
    material.results[1].measurements.clear()
    material.results[1].highest = None
    beside.rankings.clear()
    table = beside_tables(beside, material.results, SETTINGS)[0]
    assert table.rows[1] == ["st", "?", "?", "?", "?", "25", "?"]
    assert [line for line in beside_summary(beside, material.results, SETTINGS) if line.startswith("st:")] == []
    assert beside_figures(beside, material.results, SETTINGS)["contenders"]["st"]["p50_ratio"] is None


def test_a_report_without_peers_says_nothing_of_them(material: Material) -> None:
    alone = Material(
        server=material.server,
        results=material.results[:1],
        index=None,
        sources=[],
        lens={},
        settings=SETTINGS,
    )
    findings = findings_of(alone)
    assert findings.figures["peers"] is None
    assert not any("peer" in table.title for table in findings.tables)
