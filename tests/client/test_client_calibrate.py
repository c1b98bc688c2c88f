"""`skillserve calibrate`: samples, publication, binding, measuring, and every refusal."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.cli import main
from skillserve.errors import BundleError, CatalogueError, RequestRejected, ServerOverloaded
from skillserve.settings import CalibrateSettings, ClientSettings, IndexSettings, SearchSettings
from skillserve_client import Searcher, build_bundle, open_bundle, stages
from skillserve_client.calibrate import Calibrated, calibrate_bundle
from skillserve_client.check import check_bundle

WORDS = ["resize", "image", "photo", "pdf", "merge", "table", "sheet", "email", "send", "git", "commit", "chart"]
PAIRS = list(itertools.combinations(WORDS, 2))
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass
class World:
    """A catalogue of word pairs, requests that name one of them, requests of letters that none of them knows."""

    index: IndexSettings
    catalogue: Path
    requests: Path
    none: Path
    other: Path
    other_none: Path

    def calibrate(self, triton: Any, **changes: Any) -> Calibrated:
        """Calibrate the live bundle; `changes` replace files, search settings and calibrate settings."""
        named = {name: changes.pop(name) for name in ("requests", "none", "search") if name in changes}
        files = {"requests": self.requests, "none": self.none} | named
        return calibrate_bundle(triton, **files, index=self.index, settings=CalibrateSettings(**changes))

    def versions(self) -> list[str]:
        """Folders of bundles."""
        return sorted(path.name for path in self.index.bundles.iterdir() if path.is_dir())


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def known(world: IndexSettings, tmp_path: Path, fake: Any) -> World:
    skills = [{"id": f"{a}-{b}", "name": a, "description": f"{a} {b}", "body": b} for a, b in PAIRS]
    catalogue = write(tmp_path / "pairs.jsonl", skills)
    build_bundle(catalogue, fake, index=world)
    fake.calls.clear()

    def asking(name: str, pairs: list[tuple[str, str]]) -> Path:
        rows = [{"id": f"r{i}", "query": f"{b} {a} x", "skill_ids": [f"{a}-{b}"]} for i, (a, b) in enumerate(pairs)]
        return write(tmp_path / name, rows)

    def letters(name: str, first: int) -> Path:
        rows = [{"id": f"n{i}", "query": f"{LETTERS[i]} {LETTERS[i + first]} x x"} for i in range(20)]
        return write(tmp_path / name, rows)

    return World(
        index=world,
        catalogue=catalogue,
        requests=asking("requests.jsonl", PAIRS[::2]),
        none=letters("none.jsonl", 1),
        other=asking("other.jsonl", PAIRS[1::2]),
        other_none=letters("other-none.jsonl", 2),
    )


def test_calibrate_then_search_abstains_where_nothing_fits(known: World, fake: Any) -> None:
    before = open_bundle(known.index.bundles)
    done = known.calibrate(fake)
    live = open_bundle(known.index.bundles)
    assert live.version == done.manifest.version != before.version
    assert live.manifest.parent == before.version
    assert live.calibration == done.calibration
    same = {name: entry for name, entry in live.manifest.files.items() if name != "calibration.json"}
    assert same == before.manifest.files
    for settings in (SearchSettings(), SearchSettings(rerank_depth=0)):
        searcher = Searcher(live, fake, settings)
        found, missed = searcher.search("pdf merge"), searcher.search("q w k x")
        assert (found.status, found.hits[0].skill_id, missed.status) == ("ok", "pdf-merge", "abstained")
        assert found.probability is not None
        assert missed.probability is not None
        assert found.probability > 0.9
        assert missed.probability < 0.1


def test_the_same_again_asks_nothing_and_writes_nothing_unless_forced(known: World, fake: Any) -> None:
    first, calls = known.calibrate(fake), len(fake.calls)
    again = known.calibrate(fake)
    assert (again.current, again.calibration, again.manifest.version) == (
        True,
        first.calibration,
        first.manifest.version,
    )
    assert len(fake.calls) == calls
    assert not first.current
    for changed in ({"false_injection": 0.1}, {"seed": 2}):
        assert not known.calibrate(fake, **changed).current


def test_a_calibration_that_chose_from_fewer_features_is_made_anew(
    known: World, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setitem(stages._FEATURE_SETS, "embed", (("score",), ("score", "background")))
        known.calibrate(fake)
        assert known.calibrate(fake).current
    assert not known.calibrate(fake).current
    assert known.calibrate(fake).current


def test_the_record_says_what_it_rests_on(known: World, fake: Any) -> None:
    found = known.calibrate(fake, none_share=0.3, false_injection=0.1).calibration
    assert (found.none_share, found.false_injection, found.left_out_share) == (0.3, 0.1, 0)
    assert (found.num_answerable, found.num_none) == (33, 20)
    assert found.models == {"embedder": "e" * 64, "reranker": "f" * 64}
    assert found.catalogue_digest == open_bundle(known.index.bundles).manifest.catalogue_digest
    assert set(found.stages) == {"rerank", "embed"}
    for stage in found.stages.values():
        assert set(stage.request_fits) == set(stage.hit_fits) == {"platt", "isotonic"}
        assert "score" in stage.feature_losses
        assert stage.at_threshold.injected <= 0.1
        assert stage.points[0].coverage == pytest.approx(1)


def test_probabilities_follow_the_assumed_share_and_the_threshold_does_not_care(known: World, fake: Any) -> None:
    """Whoever expects more requests without a skill believes less, and refuses the same ones."""
    searches = []
    for none_share in (0.1, 0.9):
        known.calibrate(fake, none_share=none_share)
        searcher = Searcher(open_bundle(known.index.bundles), fake, SearchSettings(abstain=False))
        searches.append([searcher.search(query).probability for query in ("pdf merge", "pdf q", "q w k")])
    assert all(low > high for low, high in zip(*searches, strict=True))


def test_index_carries_a_calibration_along_and_drops_it_with_its_catalogue(
    known: World, fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    known.calibrate(fake)
    assert build_bundle(known.catalogue, fake, index=known.index).current
    assert build_bundle(known.catalogue, fake, index=known.index, force=True).calibrated
    assert open_bundle(known.index.bundles).calibration is not None
    capsys.readouterr()
    known.catalogue.write_text(known.catalogue.read_text() + '{"id": "new", "name": "new"}\n')
    assert not build_bundle(known.catalogue, fake, index=known.index).calibrated
    assert open_bundle(known.index.bundles).calibration is None
    said = " ".join(capsys.readouterr().err.split())
    assert "catalogue changed" in said
    assert "skillserve calibrate" in said


def test_a_bundle_without_a_reranker_gets_the_embed_curves_alone(known: World, fake: Any) -> None:
    (known.index.models / "skill_reranker" / "card.json").unlink()
    build_bundle(known.catalogue, fake, index=known.index)
    assert set(known.calibrate(fake).calibration.stages) == {"embed"}
    answer = Searcher(open_bundle(known.index.bundles), fake).search("q w k x")
    assert answer.status == "abstained"


def test_the_rerank_depth_is_the_calibrated_one(known: World, fake: Any) -> None:
    done = known.calibrate(fake, search=SearchSettings(rerank_depth=7))
    assert done.calibration.stages["rerank"].depth == 7
    live = open_bundle(known.index.bundles)
    assert Searcher(live, fake, SearchSettings(rerank_depth=7)).search("pdf merge").probability is not None


def test_measuring_uses_the_published_threshold_and_fits_nothing(known: World, fake: Any) -> None:
    done = known.calibrate(fake)
    before = known.versions()
    settings = CalibrateSettings(num_resamples=100)
    check = check_bundle(fake, known.other, known.other_none, index=known.index, settings=settings)
    assert known.versions() == before
    assert (check.num_answerable, check.num_none, check.bundle) == (33, 20, done.manifest.version)
    texts = {
        file: [json.loads(row)["query"] for row in file.read_text().splitlines()]
        for file in (known.other, known.other_none)
    }
    for stage, search in (("rerank", SearchSettings()), ("embed", SearchSettings(rerank_depth=0))):
        searcher = Searcher(open_bundle(known.index.bundles), fake, search)
        shares = [np.mean([searcher.search(text).status == "abstained" for text in found]) for found in texts.values()]
        found = check.stages[stage]
        assert [found.answerable_lost.value, found.none_abstained.value] == pytest.approx(shares)
        assert all(
            each.low <= each.value <= each.high for each in (found.answerable_lost, found.none_abstained, found.risk)
        )
    assert check == check_bundle(fake, known.other, known.other_none, index=known.index, settings=settings)


def test_what_was_fitted_on_is_no_measure(known: World, fake: Any) -> None:
    with pytest.raises(BundleError, match="no calibration"):
        check_bundle(fake, known.other, known.other_none, index=known.index)
    known.calibrate(fake)
    with pytest.raises(CatalogueError, match="fitted on"):
        check_bundle(fake, known.requests, known.none, index=known.index)


@pytest.mark.parametrize(
    ("kind", "num", "said"),
    [
        ("requests", 19, "19 requests that a skill of the catalogue fits; wanted at least 20"),
        ("none", 18, "18 requests that no skill fits; wanted at least 19"),
        ("none", 0, "no requests"),
    ],
)
def test_too_few_requests_are_counted(kind: str, num: int, said: str, known: World, fake: Any) -> None:
    file: Path = getattr(known, kind)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:num]))
    with pytest.raises(CatalogueError, match=said):
        known.calibrate(fake)
    assert not fake.calls


def test_requests_of_another_catalogue_are_left_out_and_all_of_them_refused(
    known: World, fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(row) for row in known.requests.read_text().splitlines()]
    write(known.requests, [*rows, {"id": "far", "query": "far", "skill_ids": ["elsewhere"]}])
    assert known.calibrate(fake).calibration.num_answerable == 33
    assert "1 requests are left out" in capsys.readouterr().err
    write(known.requests, [row | {"skill_ids": ["elsewhere"]} for row in rows])
    with pytest.raises(CatalogueError, match="33 requests with skills, none of which is in the catalogue"):
        known.calibrate(fake)


def test_requests_with_skills_are_no_requests_that_nothing_fits(known: World, fake: Any) -> None:
    with pytest.raises(CatalogueError, match="with `skill_ids`"):
        known.calibrate(fake, none=known.other)


def test_a_threshold_that_costs_much_is_warned_of(known: World, fake: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Requests that nothing fits, said to be, and that look like all the others."""
    rows = [json.loads(row) for row in known.other.read_text().splitlines()]
    write(known.none, [{"id": row["id"], "query": row["query"]} for row in rows])
    found = known.calibrate(fake).calibration
    assert all(stage.at_threshold.lost > 0.5 for stage in found.stages.values())
    said = " ".join(capsys.readouterr().err.split())
    assert all(f"the {stage} stage refuses" in said for stage in ("rerank", "embed"))


def test_another_model_on_the_server_is_refused(known: World, fake: Any) -> None:
    fake.digests["reranker"] = "9" * 64
    with pytest.raises(BundleError, match="9" * 12):
        known.calibrate(fake)
    assert not fake.calls


@pytest.mark.parametrize("kind", ["nan", "overload", "disk", "newer bundle"])
def test_whatever_fails_leaves_the_live_bundle(
    kind: str, known: World, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, versions = open_bundle(known.index.bundles).version, known.versions()
    error: type[Exception] = BundleError
    if kind == "nan":
        fake.score, error = (lambda _: np.float32("nan")), RequestRejected
    elif kind == "overload":
        error = ServerOverloaded
        fake.failures["reranker"] = ServerOverloaded("server", got="words", wanted="others", fix="Wait.")
    elif kind == "disk":

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("skillserve_client.versions.write_text", full)
    else:
        newer = iter([True])

        def score(ids: Any) -> np.float32:
            if next(newer, False):
                fake.score = lambda _: np.float32(0)
                before_score = build_bundle(known.catalogue, fake, index=known.index, force=True)
                versions.append(before_score.manifest.version)
            return np.float32(len(ids))

        fake.score = score
    with pytest.raises(error):
        known.calibrate(fake)
    assert known.versions() == sorted(versions)
    live = open_bundle(known.index.bundles)
    assert live.calibration is None
    assert (live.version == before) is (kind != "newer bundle")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def line(
    known: World,
    wire_settings: ClientSettings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Run:
    """The command line against a gRPC server: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        where = ("--bundles", str(known.index.bundles), "--url", wire_settings.url)
        code = main([*map(str, arguments), *where])
        done = capsys.readouterr()
        return code, done.out, done.err

    return run


def test_the_command_fits_measures_and_reports(known: World, line: Run, tmp_path: Path) -> None:
    files = ("--requests", known.requests, "--none", known.none)
    others = ("--check", known.other, "--check-none", known.other_none, "--num-resamples", 100)
    code, out, _ = line("calibrate", *files, *others, "--report", tmp_path / "report", "--json")
    result = json.loads(out)
    assert (code, result["status"]) == (0, "published")
    assert result["calibration"]["stages"]["rerank"]["threshold"] == result["check"]["stages"]["rerank"]["threshold"]
    report = tmp_path / "report"
    assert (report / "calibration.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((report / "calibration.json").read_text()) == result["calibration"]
    summary = (report / "calibration.md").read_text()
    assert all(words in summary for words in ("| rerank |", "| embed |", "calibration.png", "Measured on other"))
    code, out, _ = line("calibrate", *others)
    assert code == 0
    assert all(words in out for words in ("95 % interval", "rerank", "embed", "ECE"))
    code, out, _ = line("calibrate", *files)
    assert code == 0
    assert all(words in out for words in ("threshold", "current, nothing to do: "))
    code, out, _ = line("calibrate", *files, "--force")
    assert code == 0
    assert all(words in out for words in ("threshold", "published: "))


def test_search_shows_an_abstained_answer_and_runs_never_abstain(known: World, line: Run, tmp_path: Path) -> None:
    assert line("calibrate", "--requests", known.requests, "--none", known.none)[0] == 0
    code, out, _ = line("search", "q w k x")
    assert code == 0
    assert all(words in out for words in ("no skill fits", "abstained", "probability"))
    assert json.loads(line("search", "q w k x", "--json")[1])["hits"] == []
    assert json.loads(line("search", "q w k x", "--json", "--no-abstain")[1])["status"] == "ok"
    run = tmp_path / "out.run"
    assert line("search", "--file", known.other_none, "--run-out", run, "--top-k", 3)[0] == 0
    assert len(run.read_text().splitlines()) == 60


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no requests"),
        (["--requests", "requests.jsonl"], "no --none"),
        (["--check-none", "none.jsonl"], "no --check"),
        (["--check", "other.jsonl", "--check-none", "other-none.jsonl", "--report", "r"], "nothing to fit"),
        (["--requests", "requests.jsonl", "--none", "none.jsonl", "--report", "none.jsonl/x"], "--report"),
        (["--requests", "absent.jsonl", "--none", "none.jsonl"], "no such file"),
        (["--requests", "requests.jsonl", "--none", "none.jsonl", "--false-injection", "1"], "less than 1"),
    ],
)
def test_misuse_is_refused_before_the_server_is_asked(
    arguments: list[str], said: str, line: Run, wire_server: Any
) -> None:
    code, out, _ = line("calibrate", *arguments, "--json")
    assert code == 2
    assert said in " ".join(map(str, json.loads(out).values()))
    assert not wire_server.requests
