"""Mined negatives: wrong skills of the part that is trained on, from the window, and none that a guard suspects."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillserve.cli import main
from skillserve.errors import CatalogueError, ContractError
from skillserve.metrics import ranked
from skillserve.records import Query, Run, Skill
from skillserve.settings import MineSettings, Settings
from skillserve_training import TrainingData, hold_out, read_training_data
from skillserve_training.candidates import merge
from skillserve_training.guards import NameGuard, NearGoldGuard, OverlapGuard, ShareGuard
from skillserve_training.mined import Mined, read_mined, write_mined
from skillserve_training.mining import mine
from skillserve_training.nearness import Likeness
from skillserve_training.systems import open_weights


@dataclass(frozen=True)
class FixedSystem:
    """Ranks as it is told; depth is not heeded, so that nothing hides behind it."""

    name: str
    run: Run
    digests: Mapping[str, str] = field(default_factory=dict)

    def rank(self, queries: Sequence[Query], skills: Sequence[Skill], *, depth: int) -> Run:
        """The rankings that were given."""
        del skills, depth
        return {query.id: self.run[query.id] for query in queries if query.id in self.run}


def _data(golds: Sequence[set[int]], num_skills: int = 14) -> TrainingData:
    return TrainingData(
        skills=tuple(Skill(id=f"s{i:02}", name=f"name {i}", description=f"text {i}") for i in range(num_skills)),
        queries=tuple(Query(id=f"q{i}", text="a") for i in range(len(golds))),
        golds={f"q{i}": frozenset(f"s{gold:02}" for gold in fitting) for i, fitting in enumerate(golds)},
        digest="0" * 64,
    )


def _run(orders: Sequence[Sequence[int]]) -> Run:
    return {
        f"q{i}": {f"s{skill:02}": -float(rank) for rank, skill in enumerate(order)} for i, order in enumerate(orders)
    }


def _mined(data: TrainingData, part: TrainingData, runs: Sequence[Run], chosen: MineSettings, tmp_path: Path) -> Mined:
    write_mined(
        tmp_path / "m.parquet", *mine(data, part, [FixedSystem(f"r{i}", r) for i, r in enumerate(runs)], chosen)
    )
    return read_mined(tmp_path / "m.parquet", data)


_GOLDS = st.lists(st.sets(st.integers(0, 13), min_size=1, max_size=3), min_size=2, max_size=8)


@given(_GOLDS, st.randoms(use_true_random=False), st.integers(1, 4), st.integers(0, 6), st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_negatives_are_wrong_skills_of_the_window_and_never_held_out(
    tmp_path_factory: pytest.TempPathFactory, golds: list[set[int]], draw: object, first: int, more: int, seed: int
) -> None:
    data = _data(golds)
    try:
        part, held_out = hold_out(data, share=0.3)
    except CatalogueError:
        return  # nothing was left to train on
    orders = [[draw.sample(range(14), 14) for _ in golds] for _ in range(2)]  # type: ignore[attr-defined]
    runs = [_run(each) for each in orders]
    chosen = MineSettings(ranks=f"{first}-{first + more}", num_negatives=3, seed=seed)
    mined = _mined(data, part, runs, chosen, tmp_path_factory.mktemp("mined"))
    trained = {skill.id for skill in part.skills}
    held = {query.id for query in held_out.queries}
    assert set(mined.negatives) <= {query.id for query in part.queries}
    for query, negatives in mined.negatives.items():
        windows = [
            [skill for skill in ranked(run[query]) if skill in trained - data.golds[query]][first - 1 : first + more]
            for run in runs
        ]
        assert query not in held
        assert len(negatives) == len(set(negatives)) == min(3, len({skill for window in windows for skill in window}))
        assert set(negatives) <= {skill for window in windows for skill in window}


def test_negatives_stand_in_the_order_of_their_merged_rank() -> None:
    rankings = [np.array([4, 5, 6, 7, -1], np.int32), np.array([7, 6, 8, -1, -1], np.int32)]
    found = merge(rankings, 2)
    # By hand: what is at rank 2 or later in either, by the sum of 1 / (60 + rank).
    sums = {5: 1 / 62, 6: 1 / 63 + 1 / 62, 7: 1 / 64 + 1 / 61, 8: 1 / 63}
    assert [each.skill for each in found] == sorted(sums, key=lambda skill: -sums[skill])
    assert {each.skill: each.ranks for each in found} == {5: (2, None), 6: (3, 2), 7: (4, 1), 8: (None, 3)}


def test_a_draw_depends_on_the_seed_and_the_request_alone(tmp_path: Path) -> None:
    data = _data([{0}, {1}, {2}])
    runs = [_run([list(range(14))] * 3)]
    chosen = MineSettings(ranks="1-10", num_negatives=4)
    first = _mined(data, data, runs, chosen, tmp_path)
    assert _mined(data, data, runs, chosen, tmp_path).digest == first.digest
    fewer = _data([{0}, {1}])
    assert _mined(fewer, fewer, runs, chosen, tmp_path).negatives["q1"] == first.negatives["q1"]
    other = _mined(data, data, runs, chosen.model_copy(update={"seed": 14}), tmp_path)
    assert other.negatives != first.negatives
    assert len(set(first.negatives.values())) > 1


def test_a_skill_that_another_system_ranks_above_the_window_may_be_left_out(tmp_path: Path) -> None:
    data = _data([{0}])
    runs = [_run([[1, 2, 3, 4]]), _run([[3, 4, 5, 6]])]
    for guard_top, wanted in ((False, {"s03", "s04", "s05", "s06"}), (True, {"s05", "s06"})):
        chosen = MineSettings(ranks="3-4", guard_top=guard_top)
        mined = _mined(data, data, runs, chosen, tmp_path)
        assert set(mined.negatives["q0"]) == wanted
    assert mined.provenance["counts"]["left_out"]["top"] == 2


def test_a_candidate_that_a_guard_suspects_is_kept_in_the_file_with_its_reason(tmp_path: Path) -> None:
    data = _data([{0}])
    twin = Skill(id="s01", name="NAME_0", description="something else")
    data = TrainingData((data.skills[0], twin, *data.skills[2:]), data.queries, data.golds, data.digest)
    mined = _mined(data, data, [_run([list(range(14))])], MineSettings(ranks="1-5"), tmp_path)
    rows = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert [row["skill_id"] for row in rows if row["kind"] == "name"] == ["s01"]
    assert "s01" not in mined.negatives["q0"]
    assert mined.provenance["counts"]["left_out"]["name"] == 1
    assert mined.provenance["counts"]["candidates"] == 5


def test_the_name_guard_sees_through_case_and_punctuation() -> None:
    names = ["SQL-Tuner", "sql_tuner", "sql tuner 2", "!!!", "???"]
    guard = NameGuard([Skill(id=str(i), name=name) for i, name in enumerate(names)])
    assert guard.suspects(0, [0], [1, 2, 3, 4]) == {1}
    assert guard.suspects(0, [3], [4]) == set()


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=12), min_size=2, max_size=6), st.floats(0.1, 1.0))
@settings(deadline=None)
def test_the_overlap_guard_is_the_jaccard_similarity_of_runs_of_five_words(texts: list[list[str]], most: float) -> None:
    skills = [Skill(id=str(i), name="n", description=" ".join(words), body="b") for i, words in enumerate(texts)]

    def shingles(words: list[str]) -> set[tuple[str, ...]]:
        read = ["n", *words, "b"]
        return {tuple(read[i : i + 5]) for i in range(max(1, len(read) - 4))}

    one = shingles(texts[0])
    wanted = {
        i for i, words in enumerate(texts[1:], 1) if len(one & shingles(words)) / len(one | shingles(words)) > most
    }
    assert OverlapGuard(skills, most).suspects(0, [0], list(range(1, len(texts)))) == wanted


def test_the_guards_of_an_embedder_measure_request_and_gold() -> None:
    angles = [0.0, 0.2, 0.5, 1.0]  # the request lies at 0.3; skill 0 and 3 are its golds
    rows = np.array([[math.cos(angle), math.sin(angle)] for angle in angles], np.float32)
    likeness = Likeness(np.array([[math.cos(0.3), math.sin(0.3)]], np.float32), rows)
    # cos 0.3 = 0.955 is the nearer gold's; cos 0.1 = 0.995 and cos 0.2 = 0.980 are the candidates'.
    assert ShareGuard(likeness, 1.03).suspects(0, [0, 3], [1, 2]) == {1}
    assert ShareGuard(likeness, 1.02).suspects(0, [0, 3], [1, 2]) == {1, 2}
    # To gold 0 they are cos 0.2 = 0.980 and cos 0.5 = 0.878, to gold 3 cos 0.8 and cos 0.5 = 0.878.
    assert NearGoldGuard(likeness, 0.9).suspects(0, [0, 3], [1, 2]) == {1}
    assert NearGoldGuard(likeness, 0.87).suspects(0, [0, 3], [1, 2]) == {1, 2}
    assert NearGoldGuard(likeness, 0.99).suspects(0, [0, 3], [1, 2]) == set()
    assert ShareGuard(likeness, 0.1).suspects(0, [0], []) == set()


def test_a_system_that_leaves_out_a_request_is_refused() -> None:
    data = _data([{0}, {1}])
    with pytest.raises(CatalogueError, match=r"system `r`.*no ranking for 1 of 2 requests, such as `q1`"):
        mine(data, data, [FixedSystem("r", _run([list(range(14))]))], MineSettings())


def test_positions_are_those_of_the_part_that_is_trained_on(tmp_path: Path) -> None:
    data = _data([{i} for i in range(10)])
    part, _ = hold_out(data, share=0.3)
    mined = _mined(data, part, [_run([list(range(14))] * 10)], MineSettings(ranks="1-6", num_negatives=2), tmp_path)
    for query, places in zip(part.queries, mined.of(part), strict=True):
        assert tuple(part.skills[place].id for place in places) == mined.negatives[query.id]
        assert len(places) == 2


def test_negatives_of_other_data_or_another_hold_out_are_refused(tmp_path: Path) -> None:
    data = _data([{i} for i in range(10)])
    part, _ = hold_out(data, share=0.3)
    mined = _mined(data, part, [_run([list(range(14))] * 10)], MineSettings(ranks="1-6"), tmp_path)
    other = TrainingData(data.skills, data.queries, data.golds, "1" * 64)
    with pytest.raises(ContractError, match="of the data 000000000000"):
        read_mined(tmp_path / "m.parquet", other)
    for wrong in (data, hold_out(data, share=0.2)[0]):
        with pytest.raises(ContractError, match=r"another part.*hold-out of 0\.3.*--holdout-share"):
            mined.of(wrong)
    assert read_mined(tmp_path / "m.parquet", part) == mined
    with pytest.raises(ContractError, match="another part"):
        read_mined(tmp_path / "m.parquet", hold_out(data, share=0.2)[0])


def test_a_file_that_was_not_mined_is_refused(tmp_path: Path) -> None:
    data = _data([{0}])
    _mined(data, data, [_run([list(range(14))])], MineSettings(ranks="1-6"), tmp_path)
    content = (tmp_path / "m.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.parquet").write_text("no Parquet")
    pq.write_table(pq.read_table(tmp_path / "m.parquet").replace_schema_metadata(None), tmp_path / "bare.parquet")
    for name in ("absent", "cut", "text", "bare"):
        with pytest.raises(ContractError, match="no such file"):
            read_mined(tmp_path / f"{name}.parquet", data)


@pytest.fixture
def run_of_all(tiny_data: Path, tmp_path: Path) -> Path:
    """A run file over the whole train split, as `skillserve evaluate --split train` writes it."""
    data, path = read_training_data(tiny_data), tmp_path / "all.run"
    lines = [
        f"{query.id} Q0 {skill.id} {rank} {-rank} other\n"
        for query in data.queries
        for rank, skill in enumerate(data.skills, 1)
    ]
    path.write_text("".join(lines))
    return path


def test_the_command_mines_with_bm25_weights_and_a_run(
    tiny_data: Path, tiny_embedder: Path, run_of_all: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mined.parquet"
    systems = ["--with", "bm25", "--with", str(tiny_embedder), "--with", f"run:{run_of_all}"]
    windows = ["--ranks", "2-6", "--num-negatives", "4", "--max-share", "5", "--holdout-share", "0.2"]
    arguments = ["mine", "--data", str(tiny_data), *systems, *windows, "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    data = read_training_data(tiny_data)
    part, _ = hold_out(data, share=0.2)
    mined = read_mined(out, data)
    assert printed == {"file": str(out), **mined.provenance}
    assert [system["spec"] for system in printed["systems"]] == ["bm25", str(tiny_embedder), f"run:{run_of_all}"]
    assert list(printed["systems"][1]["digests"]) == ["embedder"]
    assert printed["counts"]["requests"] == len(part.queries)
    assert printed["counts"]["held_out_skills"] == len(data.skills) - len(part.skills) > 0
    assert set(printed["counts"]["left_out"]) == {"top", "name", "overlap", "share", "near gold"}
    assert sum(map(len, mined.negatives.values())) == printed["counts"]["drawn"]
    assert max(len(places) for places in mined.of(part)) == 4
    rows = pq.read_table(out)
    assert rows["similarity"].null_count == 0
    assert rows.column_names[5:] == ["rank bm25", f"rank {tiny_embedder}", f"rank run:{run_of_all}"]
    assert main(arguments) == 0
    assert "negatives drawn" in capsys.readouterr().out


def test_an_embedder_is_mined_as_its_own_ranking_of_the_part_has_it(tiny_data: Path, tiny_embedder: Path) -> None:
    """Ranked from vectors that the guards use too, it is what `skillserve evaluate` would rank."""
    data = read_training_data(tiny_data)
    part, _ = hold_out(data, share=0.2)
    system = open_weights(str(tiny_embedder), Settings())
    rows, _ = mine(
        data, part, [system], MineSettings(ranks="3-7", num_negatives=99, max_share=9, max_gold_similarity=9)
    )
    run = system.rank(part.queries, part.skills, depth=len(part.skills))
    found: dict[str, list[str]] = {}
    for row in rows.sort_by("merged_rank").to_pylist():
        assert row["similarity"] == pytest.approx(run[row["query_id"]][row["skill_id"]], abs=1e-5)
        found.setdefault(row["query_id"], []).append(row["skill_id"])
    for query in part.queries:
        wrong = [skill for skill in ranked(run[query.id]) if skill not in part.golds[query.id]]
        assert found[query.id] == wrong[2:7]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--with", "bm25", "--with", "bm25"], 2, "named twice"),
        (["--with", "nowhere"], 2, "no folder"),
        (["--with", "bm25", "--ranks", "60-21"], 2, "as in 21-60"),
        (["--with", "bm25", "--holdout-share", "0.99"], 2, "too little to train on"),
        ([], 2, "--with"),
    ],
)
def test_the_command_writes_nothing_where_it_cannot_do_what_is_asked(
    arguments: list[str], code: int, said: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mined.parquet"
    assert main(["mine", "--data", str(tiny_data), *arguments, "--out", str(out), "--json"]) == code
    assert said in capsys.readouterr().out
    assert not out.exists()


def test_a_place_that_cannot_be_written_is_found_out_before_the_work(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mine", "--data", str(tiny_data), "--with", "bm25", "--out", str(tmp_path), "--json"]) == 2
    written = capsys.readouterr()
    assert json.loads(written.out)["subject"] == f"option --out `{tmp_path}`"
    assert "bm25" not in written.err
