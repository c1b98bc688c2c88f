"""Capacity: formulas by hand, vectors and their neighbours, one small real measurement, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.cli import main
from skillserve.errors import SkillserveError
from skillserve.settings import CapacitySettings, IndexSettings
from skillserve_bench.capacity import field
from skillserve_bench.capacity.embedding import bytes_a_row
from skillserve_bench.capacity.field import KINDS, recall
from skillserve_bench.capacity.growth import LAWS, Estimate, Growth, Law
from skillserve_bench.capacity.plan import Machine, Machines, machines_for_memory, plan_embedding, plan_index
from skillserve_bench.capacity.tables import number, plan_table, ranged
from skillserve_bench.capacity.trials import MILVUS, Order, build, serve, why_no_milvus
from skillserve_bench.capacity.vectors import exact_neighbours, mixture, widened, write_vectors
from skillserve_client import build_bundle, open_bundle
from skillserve_client.batch.direct import DirectInference
from skillserve_client.batch.embed import SHARD_ROWS

_GIB = 2**30
_LINEAR = LAWS["flat"]["search"]


def _growth(law: Law, *sizes: tuple[int, list[float]]) -> Growth:
    return Growth(law=law, rows=tuple(rows for rows, _ in sizes), values=tuple(tuple(values) for _, values in sizes))


def _same(estimate: Estimate, value: float) -> bool:
    return (estimate.value, estimate.least, estimate.greatest) == pytest.approx((value,) * 3)


def test_every_kind_has_a_law_for_every_figure() -> None:
    assert set(LAWS) == set(KINDS)
    assert {tuple(laws) for laws in LAWS.values()} == {("train", "add", "search", "batch", "memory", "disk")}


@pytest.mark.parametrize(
    ("kind", "figure", "ratio"),
    [
        ("flat", "search", 1_000.0),
        ("ivf-sq8", "train", 1_000.0),
        ("ivf-sq8", "add", 1_000 * 1_000**0.5),
        ("ivf-sq8", "search", 1_000**0.5),
        ("hnsw", "add", 1_000 * 6 / 3),  # log 10⁶ / log 10³
        ("hnsw", "search", 6 / 3),
        ("ivf-pq", "memory", 1_000.0),
    ],
)
def test_laws_grow_as_by_hand(kind: str, figure: str, ratio: float) -> None:
    assert LAWS[kind][figure].ratio(1_000, 1_000_000) == pytest.approx(ratio)


def test_what_follows_its_law_has_no_range() -> None:
    growth = _growth(_LINEAR, (1_000, [2.0, 2.0]), (3_000, [6.0, 6.0]))
    assert growth.exponent == pytest.approx(1)
    assert _same(growth.at(300_000), 600.0)
    assert _same(growth.at(300), 0.6)


def test_a_fixed_part_is_the_estimate_or_the_end_of_its_range() -> None:
    """Rows and 100: by the law alone 2,100 · 5 = 10,500, with the fixed part 10,100."""
    law = Law("n", 1, certain=True)
    for fixed, value in ((Law("fixed + n", 1, fixed=True, certain=True), 10_100.0), (law, 10_500.0)):
        found = _growth(fixed, (1_000, [1_100.0]), (2_000, [2_100.0])).at(10_000)
        assert (found.value, found.least, found.greatest) == pytest.approx((value, 10_100.0, 10_500.0))


def test_another_exponent_than_the_laws_is_in_the_range() -> None:
    """Squares that are called linear: 4,000 · 5 by the law, 4,000 · 25 by the exponent."""
    growth = _growth(_LINEAR, (1_000, [1_000.0]), (2_000, [4_000.0]))
    found = growth.at(10_000)
    assert growth.exponent == pytest.approx(2)
    assert (found.value, found.least, found.greatest) == pytest.approx((20_000.0, 20_000.0, 100_000.0))


def test_rounds_widen_the_range_and_no_figure_falls_with_more_rows() -> None:
    """In one round the larger index was faster: the least is what was measured, not less, and not below 0."""
    growth = _growth(_LINEAR, (1_000, [8.0, 20.0, 8.0]), (2_000, [16.0, 10.0, 18.0]))
    found = growth.at(20_000)
    assert found.value == pytest.approx(160.0)
    assert found.least == pytest.approx(10.0)
    assert found.greatest >= 180.0
    assert growth.at(200).least > 0


def test_one_size_or_zeros_are_no_growth() -> None:
    for sizes in ([(1_000, [1.0])], [(2_000, [1.0]), (1_000, [1.0])], [(1_000, [0.0]), (2_000, [1.0])]):
        with pytest.raises(ValueError, match=r"sizes|exponent"):
            _growth(_LINEAR, *sizes)


def test_machines_by_memory_and_hours_by_hand() -> None:
    """100 million float32 vectors of 384 numbers are 143.05 GiB; 64 GiB at 70 % hold 44.8: 3.19, so four machines."""
    machine = Machine(memory_bytes=64 * _GIB, share=0.7)
    total = 100e6 * 384 * 4
    assert machines_for_memory(Estimate(value=total, least=0.9 * total, greatest=1.3 * total), machine) == Machines(
        4, 3, 5
    )
    plan = plan_embedding(
        100_000_000,
        Estimate(value=40.0, least=39.0, greatest=42.0),
        hours=24.0,
        shard_rows=4_096,
        bytes_a_row=1_575.0,
    )
    assert plan.one_machine_h.value == pytest.approx(694.44, abs=0.01)
    assert plan.one_machine_h.least == pytest.approx(661.38, abs=0.01)  # at 42 a second
    assert plan.one_machine_h.greatest == pytest.approx(712.25, abs=0.01)
    assert plan.machines == Machines(29, 28, 30)
    assert plan.num_shards == 24_415
    assert plan.file_bytes == pytest.approx(157.5e9)


def test_an_index_over_machines_by_hand() -> None:
    """1,536 + 464 bytes a row: 200 GB on machines of 50 GB are four of 25 million rows each, whatever searches cost."""
    figures = {"add": 0.001, "memory": 1_536.0, "disk": 1_536.0, "search": 2e-7, "batch": 1e-8}
    growths = {
        name: _growth(LAWS["flat"][name], *((rows, [rows * each]) for rows in (10_000, 100_000)))
        for name, each in figures.items()
    }
    plan = plan_index(100_000_000, growths, Machine(memory_bytes=100e9, share=0.5), other_bytes=464)
    assert _same(plan.memory_bytes, 200e9)
    assert plan.machines == Machines(4, 4, 4)
    assert plan.rows_each == 25_000_000
    assert _same(plan.build_h, 25_000 / 3_600)
    assert _same(plan.search_s, 5.0)
    assert _same(plan.per_s, 4.0)
    assert _same(plan.disk_bytes, 153.6e9)
    with_training = growths | {"train": _growth(_LINEAR, (10_000, [36.0]), (100_000, [360.0]))}
    trained = plan_index(100_000_000, with_training, Machine(memory_bytes=100e9, share=0.5), other_bytes=464)
    assert _same(trained.build_h, (25_000 + 90_000) / 3_600)


def test_drawn_vectors_are_of_unit_length_and_begin_alike(tmp_path: Path) -> None:
    for name, rows, seed, stream in (
        ("a", 300, 1, 1),
        ("longer", 9_000, 1, 1),
        ("other", 300, 2, 1),
        ("asked", 300, 1, 2),
    ):
        write_vectors(tmp_path / name, mixture(24, seed=seed), rows, seed=seed, stream=stream)
    a, longer, other, asked = (np.load(tmp_path / name) for name in ("a", "longer", "other", "asked"))
    np.testing.assert_array_equal(longer[:300], a)
    assert np.abs(a - other).max() > 0.1
    assert np.abs(a - asked).max() > 0.1
    np.testing.assert_allclose(np.linalg.norm(longer, axis=1), 1, rtol=1e-5)


def test_exact_neighbours_are_those_of_a_full_sort(tmp_path: Path) -> None:
    source = mixture(24, seed=3)
    write_vectors(tmp_path / "v", source, 9_000, seed=3)
    vectors = np.load(tmp_path / "v")
    queries = vectors[-7:]
    for size, places in exact_neighbours(vectors, queries, [100, 8_192, 9_000], 5).items():
        wanted = np.argsort(-(queries @ vectors[:size].T), axis=1)[:, :5]
        np.testing.assert_array_equal(np.sort(places, axis=1), np.sort(wanted, axis=1))


@pytest.fixture(scope="module")
def bundles(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles with thirty skills."""
    folder = tmp_path_factory.mktemp("bundles")
    catalogue = folder / "skills.jsonl"
    catalogue.write_text("".join(json.dumps({"id": f"s{i}", "name": f"plot {'log ' * i}"}) + "\n" for i in range(30)))
    inference = DirectInference(packed, ("embedder",), max_request_tokens=512)
    build_bundle(catalogue, inference, index=IndexSettings(bundles=folder / "b", models=packed))
    return folder / "b"


def test_a_bundles_vectors_are_drawn_again_nearby(bundles: Path, tmp_path: Path) -> None:
    """Noise of length 0.4, nearly at a right angle, leaves a cosine of 1 / √1.16 = 0.93."""
    index = open_bundle(bundles).corpus.index
    known = index.vectors(list(index.marks()))
    source = widened(bundles, IndexSettings())
    assert source.dim == known.shape[1]
    write_vectors(tmp_path / "v", source, 500, seed=1)
    cosines = (np.load(tmp_path / "v") @ known.T).max(axis=1)
    assert 0.88 < np.median(cosines) < 0.98


def test_another_dimension_than_the_bundles_is_refused(capsys: pytest.CaptureFixture[str], bundles: Path) -> None:
    assert main(["bench", "capacity", "--bundles", str(bundles), "--dim", "24", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["subject"] == "setting --dim"


def test_recall_is_the_share_of_the_nearest_that_was_found() -> None:
    exact = np.array([[1, 2], [3, 4], [5, 6]])
    assert recall(np.array([[2, 1], [3, 9]]), exact) == 0.75  # the third was not asked for


def test_numbers_are_shown_with_three_digits() -> None:
    assert [number(value) for value in (1e-9, 0.01234, 1.234, 56.78, 123.4, 1_234_567.8)] == [
        *("below 0.0001", "0.0123", "1.23", "56.8", "123", "1,234,568"),
    ]
    assert ranged(Estimate(value=2.0, least=1.0, greatest=4.0)) == "2.00 (1.00 to 4.00)"
    assert ranged(Estimate(value=2.0, least=2.0001, greatest=2.0002)) == "2.00"


def test_a_shards_rows_take_their_vectors_and_little_more() -> None:
    vectors = np.random.default_rng(1).standard_normal((SHARD_ROWS, 384)).astype(np.float32)
    assert 0.85 * 1_536 < bytes_a_row(vectors) < 1.1 * 1_536  # mantissas are not compressed


def test_milvus_lite_is_built_and_searched_through_its_door(tmp_path: Path) -> None:
    source = mixture(16, seed=4)
    write_vectors(tmp_path / "v.npy", source, 400, seed=4)
    write_vectors(tmp_path / "q.npy", source, 6, seed=4, stream=2)
    folder = tmp_path / "index"
    folder.mkdir()
    order = Order(
        kind=MILVUS,
        rows=300,
        vectors=tmp_path / "v.npy",
        queries=tmp_path / "q.npy",
        folder=folder,
        top_k=5,
        num_probes=1,
        search_breadth=16,
    )
    assert why_no_milvus(folder) is None
    built, served = build(order), serve(order)
    assert built.add_s > 0 == built.train_s
    assert built.disk_bytes > 300 * 16 * 4
    exact = exact_neighbours(np.load(order.vectors), np.load(order.queries), [300], 5)[300]
    assert recall(served.places, exact) == 1.0


def test_without_milvus_the_reason_stands_in_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "skillserve_client.milvus", raising=False)
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    why = why_no_milvus(tmp_path)
    assert why == "no package `pymilvus`"
    (row,) = plan_table({}, {}, {MILVUS: why}, CapacitySettings()).rows
    assert row[:2] == [MILVUS, "not measured: no package `pymilvus`"]


def test_a_small_catalogue_is_measured_and_planned(
    capsys: pytest.CaptureFixture[str], packed: Path, tmp_path: Path
) -> None:
    scratch, report, data = tmp_path / "scratch", tmp_path / "capacity.md", tmp_path / "data"
    scratch.mkdir()
    (data / "skills").mkdir(parents=True)
    skills = [{"id": f"s{i}", "name": "plot a log", "description": "find and deploy " * (i % 7)} for i in range(40)]
    (data / "skills" / "test.jsonl").write_text("".join(json.dumps(skill) + "\n" for skill in skills))
    arguments = [
        *("--rows", "2000,1000", "--kinds", "flat,ivf-sq8", "--dim", 32, "--rounds", 1, "--num-queries", 20),
        *("--skills", 1_000_000, "--memory-gib", 0.1, "--hours", 1, "--num-embedded", 30),
        *("--repository", packed, "--data", data, "--scratch", scratch, "--out", report),
    ]
    code = main(["bench", "capacity", *map(str, arguments), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0, found
    figures = found["figures"]
    assert set(figures["indexes"]) == {"flat", "ivf-sq8"}
    assert not list(scratch.iterdir())
    flat, growth = figures["indexes"]["flat"], figures["measured"]["flat"]["growths"]
    assert "train" not in growth
    assert "train" in figures["measured"]["ivf-sq8"]["growths"]
    assert growth["memory"]["rows"] == [1_000, 2_000]
    # 32 float32 numbers; beside them a fixed part, and what the allocator rounds up, but not FAISS's code.
    assert growth["disk"]["values"][1][0] == pytest.approx(2_000 * 128, rel=0.01)
    assert 2_000 * 128 <= growth["memory"]["values"][1][0] < 2_000 * 128 * 2
    assert figures["measured"]["flat"]["recalls"] == [1.0, 1.0]
    small, large = (values[0] for values in growth["memory"]["values"])
    line = large + max(large - small, 0.0) * 998  # a line through both sizes, at a million
    assert flat["memory_bytes"]["value"] == pytest.approx(line)
    assert flat["memory_bytes"]["greatest"] == pytest.approx(max(500 * large, line))
    assert flat["machines"]["num"] == -(-flat["memory_bytes"]["value"] // (0.1 * _GIB * 0.7))
    hours = figures["embedding"]["one_machine_h"]["value"]
    assert hours == pytest.approx(1_000_000 / figures["rate"]["per_s"]["value"] / 3_600)
    text = report.read_text()
    assert "## Indexes of 1,000,000 skills, computed" in text
    assert "NOT measured: 2 times FAISS's memory assumed" in text


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process has time to measure anything."""
    monkeypatch.setattr(field, "_LIMIT_S", 0.0)
    monkeypatch.setattr(field, "_LIMIT_S_A_NUMBER", 0.0)


@pytest.mark.usefixtures("hurried")
def test_an_index_that_has_no_end_is_killed_and_named(tmp_path: Path) -> None:
    settings = CapacitySettings(rows=(1_000, 2_000), kinds=("flat",), num_queries=10)
    with pytest.raises(SkillserveError, match=r"`flat` of 1,000 rows: got no answer within 0 s.*--rows"):
        field.measure_field(mixture(16, seed=1), settings, tmp_path)
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("hurried")
def test_a_milvus_that_has_no_end_is_absent(tmp_path: Path) -> None:
    settings = CapacitySettings(rows=(1_000, 2_000), kinds=(MILVUS,), num_queries=10)
    assert field.measure_field(mixture(16, seed=1), settings, tmp_path) == ({}, {MILVUS: "no answer within 0 s"})


@pytest.mark.parametrize(
    ("work", "argument", "error"), [(os._exit, 3, "its end before it reported"), (int, "x", "invalid literal")]
)
def test_a_process_that_fails_says_so(work: Any, argument: object, error: str) -> None:
    with pytest.raises((SkillserveError, ValueError), match=error):
        field._in_process(work, argument, limit_s=60)


def test_a_containers_limit_is_memory_that_there_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skillserve_bench.capacity.vectors.memory_bytes", lambda: 4_000_000)
    assert main(["bench", "capacity", "--rows", "1000,2000", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["got"] == "0.0 GiB of free memory"


@pytest.mark.parametrize(
    ("arguments", "subject", "got"),
    [
        (["--kinds", "flat,annoy"], "setting --kinds", "`annoy`"),
        (["--rows", "0,1000"], "setting --rows", "0"),
        (["--rows", "1000"], "setting --rows", "1000"),
        (["--rows", "10000,9000000000"], "9,000,000,000 vectors of 384 numbers", "free memory"),
        (["--kinds", "ivf-pq", "--dim", "100"], "vectors of 100 numbers", "ivf-pq"),
        (["--repository", "nowhere", "--data", "here"], "model repository `nowhere`", "no such folder"),
        (["--repository", "nowhere"], "rate of embedding", "--repository alone"),
        (["--data", "here"], "rate of embedding", "--data alone"),
        (["--repository", "nowhere", "--skills-per-s", "40"], "rate of embedding", "--skills-per-s and"),
        (["--bundles", "nowhere"], "bundle `nowhere`", "neither CURRENT"),
    ],
)
def test_what_cannot_be_planned_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], arguments: list[str], subject: str, got: str
) -> None:
    assert main(["bench", "capacity", *arguments, "--json"]) in {2, 4}
    error: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert error["subject"] == subject
    assert got in error["got"]
    assert error["wanted"]
    assert error["fix"]
