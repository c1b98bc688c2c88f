"""`skillserve evaluate` with runs from files: its figures, its refusals, and what it leaves behind."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skillserve.cli import main
from skillserve.collection import read_split
from skillserve.errors import CardError
from skillserve.figures import measure_runs
from skillserve.runs import read_run, write_run
from skillserve.settings import EvaluateSettings
from skillserve.systems import require_query_prompt

GOOD = {"q1": {"a": 2.0, "b": 1.0}, "q2": {"b": 1.0}, "q3": {"a": 3.0, "c": 2.0, "b": 1.0}}
POOR = {"q1": {"b": 2.0, "a": 1.0}, "q2": {"b": 1.0}, "q3": {"b": 3.0, "c": 2.0}, "q4": {"a": 1.0}}
SECOND = 1 / math.log2(3)
"""NDCG of a single gold at rank 2."""

Evaluate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def evaluate(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Evaluate:
    """Run the command in a folder with good.run and poor.run; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "good.run", GOOD)
    write_run(tmp_path / "poor.run", POOR)

    def run(*arguments: str, source: tuple[str, ...] = ("--data", str(data))) -> tuple[int, str, str]:
        code = main(["evaluate", *arguments, *source, "--resamples", "200"])
        done = capsys.readouterr()
        return code, done.out, done.err

    return run


def test_systems_are_measured_and_compared_with_the_first(evaluate: Evaluate) -> None:
    code, out, err = evaluate("run:good.run", "run:poor.run", "--json")
    report = json.loads(out)
    good, poor = report["systems"]
    assert code == 0
    assert (report["baseline"], good["name"], good["differences"]) == ("run:good.run", "run:good.run", None)
    assert good["metrics"]["ndcg@10"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    ndcg = (SECOND + 1 + SECOND / (1 + SECOND)) / 3
    assert poor["metrics"]["ndcg@10"]["mean"] == pytest.approx(ndcg)
    assert poor["metrics"]["recall@10"]["mean"] == pytest.approx(2.5 / 3)
    assert poor["metrics"]["completeness@5"]["mean"] == pytest.approx(2 / 3)
    assert poor["metrics"]["map@15"]["mean"] == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert poor["metrics"]["precision@5"]["mean"] == pytest.approx(0.2)
    assert poor["differences"]["ndcg@10"]["mean"] == pytest.approx(ndcg - 1)
    assert poor["differences"]["ndcg@10"]["low"] < ndcg - 1 < poor["differences"]["ndcg@10"]["high"] <= 0
    assert 0 < poor["differences"]["ndcg@10"]["p"] <= 1
    assert {title: group["num_queries"] for title, group in poor["by_num_golds"].items()} == {"1": 2, "2": 1}
    assert poor["by_num_golds"]["1"]["metrics"]["ndcg@10"]["mean"] == pytest.approx((SECOND + 1) / 2)
    assert poor["by_namespace"]["other"]["metrics"]["recall@10"]["mean"] == 0.5
    counts = {name: report["collection"][name] for name in ("num_queries", "num_dropped", "num_skills", "num_golds")}
    assert counts == {"num_queries": 3, "num_dropped": 1, "num_skills": 3, "num_golds": 4}
    assert report["settings"]["resamples"] == 200
    assert "numpy" in report["versions"]
    assert "1 requests without a fitting skill are left out" in err


def test_people_see_a_row_a_system_and_more_if_they_ask(evaluate: Evaluate) -> None:
    code, out, _ = evaluate("run:good.run", "run:poor.run")
    assert code == 0
    assert all(words in out for words in ("100.00 [100.0, 100.0]", "difference to run:good.run", "3 requests"))
    assert "NDCG@15" not in out
    assert "difference" not in evaluate("run:good.run")[1]
    full = evaluate("run:good.run", "run:poor.run", "--full", "--cutoffs", "15,1")[1]
    assert all(words in full for words in ("NDCG@1 ", "MAP@10", "P@15", "skills that fit", "acme"))
    assert "NDCG@5 " not in full


def test_no_row_of_figures_is_cut_at_eighty_columns(evaluate: Evaluate) -> None:
    """Where stdout is no terminal, tables are that wide; long names are folded, figures never."""
    Path("a-rather-long-name-of-a-run.run").write_text(Path("poor.run").read_text())
    out = evaluate("run:good.run", "run:a-rather-long-name-of-a-run.run", "--full")[1]
    assert "…" not in out
    assert max(map(len, out.splitlines()[:5])) <= 80


def test_chance_comes_from_the_seed(evaluate: Evaluate) -> None:
    def p(*arguments: str) -> float:
        report = json.loads(evaluate("run:good.run", "run:poor.run", "--json", *arguments)[1])
        return float(report["systems"][1]["differences"]["ndcg@10"]["p"])

    assert p() == p("--seed", "13") != p("--seed", "14")


def test_requests_that_a_run_lacks_are_an_error_unless_they_may_count_as_zero(evaluate: Evaluate) -> None:
    write_run(Path("part.run"), {"q1": GOOD["q1"]})
    code, out, _ = evaluate("run:part.run", "--json")
    error = json.loads(out)
    assert (code, error["error"]) == (2, "CatalogueError")
    assert error["got"] == "no ranking for 2 of 3 requests: q2, q3"
    code, out, err = evaluate("run:part.run", "--json", "--allow-missing")
    assert code == 0
    assert json.loads(out)["systems"][0]["metrics"]["ndcg@10"]["mean"] == pytest.approx(1 / 3)
    assert json.loads(out)["systems"][0]["num_missing"] == 2
    assert "2 of 3 requests; they count as 0" in err


def test_runs_are_written_and_give_the_same_figures_again(evaluate: Evaluate) -> None:
    first = json.loads(evaluate("run:good.run", "run:./poor.run", "--run-out", "runs", "--json")[1])
    names = sorted(path.name for path in Path("runs").iterdir())
    assert names == ["1-run_good.run.run", "2-run_._poor.run.run"]
    assert read_run(Path("runs") / names[1]) == {query: POOR[query] for query in ("q1", "q2", "q3")}
    again = json.loads(evaluate(*(f"run:runs/{name}" for name in names), "--json")[1])
    assert [each["metrics"] for each in again["systems"]] == [each["metrics"] for each in first["systems"]]


def test_files_are_as_good_as_a_folder(evaluate: Evaluate, data: Path) -> None:
    files = {part: str(data / part / "test.jsonl") for part in ("queries", "qrels", "skills")}
    source = tuple(word for part, file in files.items() for word in (f"--{part}", file))
    by_files, by_folder = (
        json.loads(evaluate("run:poor.run", "--json", source=s)[1]) for s in (source, ("--data", str(data)))
    )
    assert by_files["collection"] == by_folder["collection"]
    assert by_files["systems"] == by_folder["systems"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run:good.run", "run:good.run"), 2, "twice"),
        (("run:good.run", "--depth", "5"), 2, "--depth"),
        (("run:good.run", "--cutoffs", "5,x"), 2, "--cutoffs"),
        (("run:good.run", "--cutoffs", "0"), 2, "--cutoffs"),
        (("run:absent.run",), 2, "absent.run"),
        (("run:good.run", "--queries", "q.jsonl"), 2, "--data and files"),
        (("run:good.run", "--run-out", "good.run"), 2, "--run-out"),
        (("run:good.run", "--split", "dev"), 2, "--split"),
    ],
)
def test_misuse_is_refused(arguments: tuple[str, ...], code: int, said: str, evaluate: Evaluate) -> None:
    found, out, err = evaluate(*arguments)
    assert (found, out) == (code, "")
    assert said in err


def test_requests_have_to_be_named(evaluate: Evaluate) -> None:
    code, _, err = evaluate("run:good.run", source=())
    assert code == 2
    assert "--data FOLDER" in err


def test_a_run_over_other_skills_is_refused(evaluate: Evaluate) -> None:
    write_run(Path("union.run"), GOOD | {"q2": {"d": 1.0}})
    assert evaluate("run:union.run")[0] == 2
    assert evaluate("run:union.run", "--pool", "union")[0] == 0


def test_a_system_whose_room_is_missing_names_the_pip_line(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    monkeypatch.delitem(sys.modules, "skillserve_training.bm25", raising=False)
    code, _, err = evaluate("run:good.run", "bm25")
    assert code == 3
    assert "pip install 'skillserve[training]'" in err


def test_an_instruction_tuned_embedder_needs_its_prompt(tiny_embedder: Path) -> None:
    from skillserve.card import read_card

    bert = read_card(tiny_embedder)
    qwen = bert.model_copy(update={"family": "qwen3"})
    for card in (bert, qwen.model_copy(update={"query_prompt": "Instruct: find\nQuery: "})):
        require_query_prompt(card, subject="x")
    with pytest.raises(CardError, match="query prompt"):
        require_query_prompt(qwen, subject="x")


def test_figures_do_not_depend_on_the_other_systems(data: Path) -> None:
    collection, settings = read_split(data, "test"), EvaluateSettings(resamples=200)
    alone = measure_runs([POOR], collection, settings)[0]
    beside = measure_runs([GOOD, POOR], collection, settings)[1]
    assert beside.metrics == alone.metrics
    assert beside.by_num_golds == alone.by_num_golds
