"""Measurements, overload, comparison, charts and the page, from windows made by hand."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.image import imread

from skillserve.cli import main
from skillserve.errors import ConfigError
from skillserve.settings import BenchSettings, ClientSettings, IndexSettings, SearchSettings
from skillserve_bench.environment import observe
from skillserve_bench.gpus import GpuMeter
from skillserve_bench.latency import sources_of
from skillserve_bench.lengths import LENGTHS
from skillserve_bench.levels import IndexBuild, Lines
from skillserve_bench.load.histogram import Histogram
from skillserve_bench.load.windows import Window
from skillserve_bench.measurement import Measurement, within
from skillserve_bench.overload import weigh_overload
from skillserve_bench.page import html_page
from skillserve_bench.presentation import Material, findings_of
from skillserve_bench.processor import Usage
from skillserve_bench.rate_search import Bracket, HighestRate
from skillserve_bench.report import Report, check_files, deliver
from skillserve_bench.scenarios.latency import Results
from skillserve_client import Statistics

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WINDOW_S = 0.5


def window(number: int, latencies_ms: list[float], failures: dict[str, int] | None = None) -> Window:
    """A window of answers and failures."""
    num = len(latencies_ms) + sum((failures or {}).values())
    return Window(
        number=number,
        num_scheduled=num,
        num_done=len(latencies_ms),
        latencies=Histogram.of((np.array(latencies_ms) * 1e6).astype(np.int64)),
        lags=Histogram.of(np.full(num, 100_000)),
        failures=failures or {},
    )


def measurement(scenario: str, median_ms: float = 10.0, *, seed: int = 1, rate: float | None = None) -> Measurement:
    """A run of twenty windows."""
    rng = np.random.default_rng(seed)
    windows = [window(i, (median_ms * rng.lognormal(0, 0.2, 20)).tolist()) for i in range(20)]
    statistics = Statistics(
        num_requests=1_200, num_failed=0, num_executions=400, queue_ms=600.0, compute_ms=2_400.0, input_ms=60.0,
        output_ms=12.0, batch_sizes={1: 100, 3: 200, 5: 100},
    )  # fmt: skip
    return Measurement(
        scenario=scenario,
        contender="embedder",
        load="a load",
        offered_per_s=rate,
        each=1,
        ended="completed",
        settled=True,
        used_up=False,
        num_warm_up=3,
        rounds=[windows],
        window_s=WINDOW_S,
        lag_p99_ms=0.2,
        busiest=0.3,
        num_workers=1,
        clock_step_s=0.0,
        usage=Usage(client=0.1, server=0.8, others=0.1),
        memory_mib=200.0,
        gpu=None,
        server={"embedder": statistics},
        first_error=None,
        seed=1,
    )


def material(median_ms: float = 10.0, *, seed: int = 1) -> Material:
    """Everything that a report may show."""
    results = Results(
        contender="embedder",
        bound_ms=100.0,
        saturation_per_s=120.0,
        highest=HighestRate(80.0, 84.0, (80.0,)),
        brackets=[Bracket(80.0, 84.0, 6)],
    )
    names = ("single", "multi", "offline", "saturation")
    results.measurements += [measurement(name, median_ms, seed=seed + i) for i, name in enumerate(names)]
    results.measurements.append(measurement("server", median_ms, rate=80.0))
    overloaded = measurement("overload 2x", rate=100.0)
    results.measurements.append(overloaded)
    results.overloads.append(
        weigh_overload(overloaded, factor=2.0, begin_s=1.0, end_s=2.0, wanted_share=0.99, bound_ms=100.0)
    )
    results.probes.append(measurement("probe", 200.0, rate=160.0))
    return Material(
        server="Triton 2.51.0 (embedded)",
        results=[results],
        index=IndexBuild(seconds=2.0, num_skills=108),
        sources=["Requests for embedder: <216> real ones."],
        lens={"embedder": [5, 9, 9, 30]},
        settings=BenchSettings(),
    )


def with_rate(kept: float, refused: float | None, *, searched: Sequence[float] = (), seed: int = 1) -> Material:
    """Everything, with this highest rate."""
    found = material(seed=seed)
    (results,) = found.results
    results.highest = HighestRate(kept, refused, tuple(searched))
    results.brackets[:] = [Bracket(rate, None if refused is None else 1.05 * rate, 4) for rate in searched]
    return found


def report(found: Material) -> Report:
    """A report of it."""
    return Report(findings=findings_of(found), environment=observe(), command="skillserve bench latency")


def test_every_length_that_can_be_set_is_defined() -> None:
    assert set(LENGTHS) == set(get_args(BenchSettings.model_fields["length"].annotation))


@pytest.mark.parametrize("kept", [320, 0])
def test_the_method_says_where_skills_were_read_in_advance(kept: int, tmp_path: Path) -> None:
    nowhere: Any = None  # nothing is asked of the server
    lines = Lines(
        nowhere,
        nowhere,
        repository=tmp_path,
        data=tmp_path,
        index=IndexSettings(token_embeddings=kept),
        client=ClientSettings(),
        search=SearchSettings(),
        seed=1,
    )
    method = findings_of(replace(material(), sources=sources_of(lines))).method
    told = "It keeps up to 320 token embeddings a skill: what reranking reads of skills was read in advance."
    assert (told in method) == bool(kept)


def test_a_late_generator_makes_a_run_invalid_and_says_why() -> None:
    late = replace(measurement("single"), lag_p99_ms=1.01)
    assert measurement("single").objections == []
    assert "started 1.01 ms late at p99 (limit 1 ms)" in late.objections[0]
    found = material()
    found.results[0].measurements[0] = late
    findings = findings_of(found)
    assert not findings.passed
    assert findings.summary[0].startswith("NOT VALID: embedder single: invalid")


def test_a_stepped_clock_and_failures_are_remarked_and_a_partial_run_is_marked() -> None:
    stepped = replace(measurement("single"), clock_step_s=-3_600.0, settled=False)
    assert any("set by -3600.0 s" in remark for remark in stepped.remarks)
    assert any("never settled" in remark for remark in stepped.remarks)
    shed = replace(measurement("single"), rounds=[[window(0, [1.0], {"ServerOverloaded": 3})]], first_error="full")
    assert shed.remarks == ["failed: 3 ServerOverloaded (first: full)"]
    assert shed.share_within(100.0) == 0.25
    partial = replace(material(), interrupted=True)
    assert findings_of(partial).summary[0].startswith("PARTIAL")
    assert not findings_of(partial).passed


def test_what_failed_counts_as_late() -> None:
    assert within([window(0, [10.0, 99.0, 101.0], {"DeadlineExceeded": 1})], 100.0) == 2


def test_an_overload_is_weighed_by_what_was_scheduled_in_it() -> None:
    windows = [window(i, [10.0] * 10) for i in range(2)]
    windows += [window(i, [10.0] * 4 + [500.0] * 6, {"ServerOverloaded": 8, "DeadlineExceeded": 2}) for i in (2, 3)]
    windows += [window(4, [500.0] * 10), window(5, [10.0] * 10), window(6, [500.0] * 10)]
    windows += [window(i, [10.0] * 10) for i in range(7, 10)]
    run = replace(measurement("overload 2x"), rounds=[windows])
    found = weigh_overload(run, factor=2.0, begin_s=1.0, end_s=2.0, wanted_share=0.99, bound_ms=100.0)
    assert (found.offered_per_s, found.goodput_per_s) == (40.0, 8.0)
    assert (found.shed_share, found.late_share, found.failed_share) == (0.4, 0.3, 0.1)
    assert (found.recovery_s, found.watched_s) == (1.5, 3.0)  # window 5 was a lull, not a recovery
    never = replace(run, rounds=[windows[:7]])
    assert (
        weigh_overload(never, factor=2.0, begin_s=1.0, end_s=2.0, wanted_share=0.99, bound_ms=100.0).recovery_s is None
    )


def written(folder: Path, name: str, found: Material) -> Path:
    """A JSON report on disk."""
    path = folder / name
    deliver(report(found), files=[path], as_json=True)
    return path


def compared(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    """`bench compare --json`."""
    capsys.readouterr()
    code = main(["bench", "compare", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_twice_the_latency_is_a_regression_and_the_reverse_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = written(tmp_path, "old.json", material()), written(tmp_path, "new.json", material(20.0, seed=9))
    code, found = compared(capsys, old, new)
    assert (code, found["passed"]) == (1, False)
    p50 = next(each for each in found["ratios"] if (each["scenario"], each["figure"]) == ("single", "p50"))
    assert p50["ratio"]["value"] == pytest.approx(2, rel=0.1)
    assert p50["ratio"]["low"] > 1.5
    assert p50["regression"]
    assert compared(capsys, new, old)[0] == 0
    assert compared(capsys, old, new, "--regression-share", 3)[0] == 0


def in_rounds(levels_ms: list[float]) -> Material:
    """Lone requests, a round at each level."""
    found = material()
    times = [measurement("single", level, seed=i) for i, level in enumerate(levels_ms)]
    found.results[0].measurements[0] = Measurement.joined(times, wanted=len(times))
    return found


def test_rounds_of_a_load_are_one_measurement() -> None:
    times = [measurement("single", level, seed=i) for i, level in enumerate([10.0, 20.0, 10.0])]
    times[1] = replace(
        times[1], lag_p99_ms=0.9, settled=False, memory_mib=None, usage=Usage(client=0.4, server=0.2, others=0.4)
    )
    found = Measurement.joined(times, wanted=3)
    assert [len(windows) for windows in found.rounds] == [20, 20, 20]
    assert (found.num_answered, found.lag_p99_ms, found.settled, found.memory_mib) == (1_200, 0.9, False, 200.0)
    assert found.usage == Usage(client=pytest.approx(0.2), server=pytest.approx(0.6), others=pytest.approx(0.2))
    assert (found.server["embedder"].num_requests, found.server["embedder"].batch_sizes[3]) == (3_600, 600)
    assert any("not always settled" in remark for remark in found.remarks)
    assert found.objections == []
    assert Measurement.joined(times[:2], wanted=3).objections == ["partial: 2 of 3 rounds"]
    ended = [times[0], replace(times[2], ended="Ctrl-C", server={})]
    assert Measurement.joined(ended, wanted=2).objections == ["partial: Ctrl-C"]
    assert Measurement.joined(ended[::-1], wanted=2).server == times[0].server


def test_a_machine_that_was_slow_in_some_rounds_is_no_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = written(tmp_path, "old.json", in_rounds([10.0, 17.0, 10.0, 10.0]))
    new = written(tmp_path, "new.json", in_rounds([17.0, 17.0, 10.0, 17.0]))
    assert compared(capsys, old, new)[0] == 0
    content = new.read_text()
    flat = json.loads(content)
    del flat["figures"]["levels"]["embedder"]["measurements"]["single"]["windows_of_rounds"]
    new.write_text(json.dumps(flat))  # as an earlier release wrote it
    assert compared(capsys, old, new)[0] == 1


def test_other_accidents_of_the_same_latencies_are_no_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = written(tmp_path, "old.json", material()), written(tmp_path, "new.json", material(seed=50))
    code, found = compared(capsys, old, new)
    assert (code, found["passed"]) == (0, True)
    assert {each["scenario"] for each in found["ratios"]} == {"single", "multi", "offline", "saturation", "server"}


@pytest.mark.parametrize(("factors", "judged"), [((None, None), True), ((10.0, 10.0), True), ((10.0, None), False)])
def test_rates_are_compared_where_they_kept_the_same_bound(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    factors: tuple[float | None, float | None],
    judged: bool,
) -> None:
    old, new = (
        written(tmp_path, f"{i}.json", replace(material(), settings=BenchSettings(bound_factor=factor)))
        for i, factor in enumerate(factors)
    )
    found = compared(capsys, old, new)[1]
    assert ("highest rate" in {each["figure"] for each in found["ratios"]}) == judged
    assert any("bound_factor differs" in remark for remark in found["remarks"]) != judged


@pytest.mark.parametrize(("failed", "code"), [(84.0, 1), (92.0, 0)])
def test_a_lower_rate_is_a_regression_beyond_what_the_search_left_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failed: float, code: int
) -> None:
    """The old one kept 90 requests a second, and failed at 94; the new one kept 80."""
    old, new = with_rate(90.0, 94.0), with_rate(80.0, failed, seed=50)
    found = compared(capsys, written(tmp_path, "old.json", old), written(tmp_path, "new.json", new))
    assert found[0] == code
    ratio = next(each["ratio"] for each in found[1]["ratios"] if each["figure"] == "highest rate")
    assert ratio["low"] == pytest.approx(80 / 94)
    assert ratio["high"] == pytest.approx(failed / 90)


@pytest.mark.parametrize(("searched", "code"), [((79.0, 80.0, 81.0, 80.0), 1), ((70.0, 110.0, 60.0, 85.0), 0)])
def test_a_lower_rate_is_a_regression_beyond_what_searches_were_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], searched: tuple[float, ...], code: int
) -> None:
    old = with_rate(100.0, 101.0, searched=[99.0, 101.0, 100.0])
    new = with_rate(80.0, 81.0, searched=searched, seed=50)
    files = [written(tmp_path, f"{i}.json", each) for i, each in enumerate((old, new))]
    assert compared(capsys, *files)[0] == code


@pytest.mark.parametrize(("high", "code"), [(85.0, 1), (130.0, 0)])
def test_a_lower_rate_is_none_where_its_searches_reach_the_other_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], high: float, code: int
) -> None:
    """Of which nobody knows how high it is: no rate failed."""
    old, new = with_rate(100.0, None), with_rate(80.0, 81.0, searched=[79.0, high], seed=50)
    files = [written(tmp_path, f"{i}.json", each) for i, each in enumerate((old, new))]
    found = compared(capsys, *files)
    assert found[0] == code
    assert next(each["ratio"] for each in found[1]["ratios"] if each["figure"] == "highest rate")["low"] is None


def test_reports_of_earlier_releases_know_of_one_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [written(tmp_path, f"{i}.json", material()) for i in range(2)]
    for file in files:
        content = json.loads(file.read_text())
        level = content["figures"]["levels"]["embedder"]
        del level["server_refused_per_s"]
        (level["bracket"],) = level.pop("searches")
        file.write_text(json.dumps(content))
    found = compared(capsys, *files)[1]
    ratio = next(each["ratio"] for each in found["ratios"] if each["figure"] == "highest rate")
    assert (ratio["low"], ratio["high"]) == pytest.approx((80 / 84, 84 / 80))


def test_what_ends_before_a_rate_is_confirmed_says_what_passed() -> None:
    found = material()
    (results,) = found.results
    results.highest = None
    assert "embedder: no rate kept p99 within 100 ms." in findings_of(found).summary
    results.probes.append(measurement("probe", 10.0, rate=60.0))
    text = "embedder: up to 60 requests a second kept p99 once, none confirmed, within 100 ms."
    assert text in findings_of(found).summary


def test_a_search_that_met_no_limit_found_no_lower_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = with_rate(90.0, 94.0), with_rate(80.0, None)
    code, found = compared(capsys, written(tmp_path, "old.json", old), written(tmp_path, "new.json", new))
    assert (code, "highest rate" in {each["figure"] for each in found["ratios"]}) == (0, False)
    assert any("ended before a rate failed" in remark for remark in found["remarks"])


def test_invalid_runs_are_named_and_not_judged_and_strange_files_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = material(30.0)
    late.results[0].measurements[0] = replace(measurement("single", 30.0), lag_p99_ms=5.0)
    old, new = written(tmp_path, "old.json", material()), written(tmp_path, "new.json", late)
    _, found = compared(capsys, old, new)
    assert "single" not in {each["scenario"] for each in found["ratios"]}
    assert any("single: not compared, invalid" in remark for remark in found["remarks"])
    strange = tmp_path / "strange.json"
    strange.write_text('{"figures": []}')
    assert compared(capsys, old, strange)[0] == 2


def test_the_page_is_one_file_with_the_outcome_first_and_every_chart_in_it() -> None:
    found = report(material())
    page = html_page(found, circumstances=["Machine: <Abacus>"])
    assert page.index("keep p99 within") < page.index("<img")
    assert "&lt;Abacus&gt;" in page
    assert "&lt;216&gt;" in page
    assert "Length <code>full</code>" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    charts = [base64.b64decode(data) for data in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)]
    drawn = found.findings.draw()
    assert len(charts) == len(drawn) == 6
    for chart in charts:
        assert ET.fromstring(chart).tag.endswith("svg")  # noqa: S314 -- our own
    assert {chart.title for chart in drawn} >= {
        "embedder: latency against rate",
        "Lengths of what was sent",
    }


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH to open the page in")
def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    page, picture = tmp_path / "latency.html", tmp_path / "latency.png"
    deliver(report(material()), files=[page], as_json=True)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,2400"]
    shown = subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert imread(picture).std() > 0.05  # not a blank page


def test_a_full_disk_loses_no_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full is a disk that is always full."""

    def on_a_full_disk(path: Path, content: str) -> None:
        assert path
        with Path("/dev/full").open("w") as file:
            file.write(content)

    monkeypatch.setattr("skillserve_bench.report.write_text", on_a_full_disk)
    with pytest.raises(ConfigError, match="No space left"):
        deliver(report(material()), files=[tmp_path / "latency.json"], as_json=False)
    assert json.loads(capsys.readouterr().out)["benchmark"] == "latency"


def test_a_report_of_an_unknown_form_or_nowhere_to_write_it_is_refused_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"one of \.md, \.html, \.json"):
        check_files([tmp_path / "latency.pdf"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="room and permission"):
        check_files([tmp_path / "file" / "latency.md"])


def test_statistics_between_two_moments_are_differences() -> None:
    early = Statistics(num_requests=2, num_failed=0, num_executions=2, queue_ms=1.0, compute_ms=2.0, batch_sizes={1: 2})
    late = Statistics(
        num_requests=8, num_failed=1, num_executions=4, queue_ms=5.0, compute_ms=9.0, batch_sizes={1: 2, 3: 2}
    )
    between = late.since(early)
    assert (between.num_requests, between.num_executions, between.batch_sizes) == (6, 2, {3: 2})
    assert (between.queue_ms, between.compute_ms) == (4.0, 7.0)
    assert early.plus(between) == late


def test_without_a_gpu_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with GpuMeter() as meter:
        pass
    assert meter.usage is None
