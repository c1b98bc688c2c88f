"""The workload's order, absent peers, the machine's kernels, and the command on a model of a few numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from skillserve.card import read_card
from skillserve.cli import main
from skillserve.settings import ExportSettings
from skillserve_bench.inprocess import LocalModel
from skillserve_bench.scenarios import speed
from skillserve_bench.speed import contenders, field
from skillserve_bench.speed.contenders import run_joined
from skillserve_bench.speed.flops import Product
from skillserve_bench.speed.gemm import Gemm, Shape, gemms
from skillserve_bench.speed.peers import PEER_NAMES, open_peers, openers
from skillserve_bench.speed.workload import Embedding, Reranking, read_corpus
from skillserve_client.tokens import embedder_tokens, reranker_tokens
from skillserve_export import export_model

SEED = 5


@pytest.fixture(scope="module")
def short_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Skills and requests of a few words that the tiny tokenizer knows, so that nobody has to cut a pair."""
    folder = tmp_path_factory.mktemp("short") / "words"
    words = ["find", "skill", "sql", "query", "deploy", "test", "agent", "the", "and", "log", "index", "plan"]
    rng = np.random.default_rng(SEED)
    some = [" ".join(rng.choice(words, rng.integers(1, 6)).tolist()) for _ in range(90)]
    skills = [{"id": f"s{i}", "name": some[i], "description": some[i + 30], "body": some[i + 60]} for i in range(30)]
    queries = [{"id": f"q{i}", "query": f"{some[i]} {some[i + 30]}", "skill_ids": [f"s{i}"]} for i in range(8)]
    qrels = [{"query_id": f"q{i}", "skill_id": f"s{i}", "relevance": 1} for i in range(8)]
    for part, rows in (("skills", skills), ("queries", queries), ("qrels", qrels)):
        (folder / part).mkdir(parents=True)
        (folder / part / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_subset_keeps_the_skills_that_fit_its_requests(sample_data: Path) -> None:
    corpus = read_corpus(sample_data, num_skills=20, num_requests=4, seed=SEED)
    golds = {skill for of_one in corpus.qrels.values() for skill, rel in of_one.items() if rel > 0}
    assert (len(corpus.skills), len(corpus.queries)) == (20, 4)
    assert golds <= {skill.id for skill in corpus.skills}
    assert read_corpus(sample_data, num_skills=20, num_requests=4, seed=SEED) == corpus
    assert len(read_corpus(sample_data, num_skills=None, num_requests=None, seed=SEED).queries) > 100


def test_parts_hold_every_text_once_in_an_order_that_ids_and_texts_share(
    tiny_embedder: Path, tiny_reranker: Path, sample_data: Path
) -> None:
    corpus = read_corpus(sample_data, num_skills=30, num_requests=6, seed=SEED)
    tokens = embedder_tokens(read_card(tiny_embedder), (tiny_embedder / "tokenizer.json").read_bytes())
    embedding = Embedding(corpus, tokens, seed=SEED)
    parts = embedding.parts(4)
    assert sorted(np.concatenate([part.places for part in parts]).tolist()) == list(range(36))
    for part in parts:
        texts = part.texts()
        apart = [*tokens.skills(texts.skills), *(cut.ids for cut in tokens.queries(texts.requests))]
        for i, sequence in enumerate(part.tokenised()):
            np.testing.assert_array_equal(sequence, apart[texts.stream[i]])
            np.testing.assert_array_equal(sequence, embedding.tokenised(part.places[i : i + 1])[0])

    pair_tokens = reranker_tokens(read_card(tiny_reranker), (tiny_reranker / "tokenizer.json").read_bytes())
    similarities = np.random.default_rng(SEED).random((6, 30), np.float32)
    reranking = Reranking(corpus, pair_tokens, similarities, seed=SEED)
    assert reranking.size == 120
    for part in reranking.parts(3):
        pairs = part.texts().pairs
        sides = pair_tokens.skills([skill for _, skill in pairs])
        queries = pair_tokens.queries([request for request, _ in pairs])
        wanted = [pair_tokens.pair(query.ids, side) for query, side in zip(queries, sides, strict=True)]
        assert all(np.array_equal(a, b) for a, b in zip(part.tokenised(), wanted, strict=True))
        # Whole requests, each with its twenty best.
        assert len(pairs) == 2 * part.num_together


def test_a_ranking_by_similarity_is_judged_by_similarity(tiny_reranker: Path, sample_data: Path) -> None:
    """A perfect first stage, and a reranker that turns it round."""
    corpus = read_corpus(sample_data, num_skills=30, num_requests=6, seed=SEED)
    tokens = reranker_tokens(read_card(tiny_reranker), (tiny_reranker / "tokenizer.json").read_bytes())
    fitting = np.array([[float(corpus.qrels[q.id].get(s.id, 0)) for s in corpus.skills] for q in corpus.queries])
    similarities = (fitting - np.linspace(0, 0.1, 30)).astype(np.float32)
    reranking = Reranking(corpus, tokens, similarities, seed=SEED)
    best = -np.sort(-similarities, axis=1)[:, : reranking.num_candidates]
    assert reranking.ndcg(best.reshape(-1)) == pytest.approx(100.0)
    assert reranking.ndcg(-best.reshape(-1)) < 50


def test_a_peer_that_cannot_take_part_is_named_with_its_reason(
    tiny_reranker: Path, tiny_embedder: Path, sample_data: Path
) -> None:
    corpus = read_corpus(sample_data, num_skills=5, num_requests=1, seed=SEED)
    tokens = embedder_tokens(read_card(tiny_embedder), (tiny_embedder / "tokenizer.json").read_bytes())
    trial = Embedding(corpus, tokens, seed=SEED).parts(1)[0]
    other_kind = read_card(tiny_reranker).model_copy(update={"score_kind": "yes_no"})
    contenders, absent = open_peers(openers("reranker", tiny_reranker, other_kind), trial)
    assert contenders == []
    assert list(absent) == list(PEER_NAMES.values())
    assert all("yes_no" in reason for reason in absent.values())


def test_kernels_multiply_what_they_are_given_and_the_missing_ones_are_named() -> None:
    products = [Product(32, 48, 2), Product(48, 32, 1)]
    found, absent = gemms(products, num_tokens=24, options=onnxruntime.SessionOptions())
    names = {each.name for each in found}
    assert {"onnxruntime fp32", "onnxruntime int8", "torch fp32"} <= names
    assert names | set(absent) == {
        *(f"{library} {kind}" for library in ("onnxruntime", "torch") for kind in ("fp32", "bf16", "int8"))
    }
    assert all(each.rate(seconds=0.0) > 0 for each in found)


def test_a_rate_weighs_shapes_by_how_often_the_model_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shape, "seconds", lambda shape, _least_s: {100.0: 1.0, 300.0: 2.0}[shape.flops])
    gemm = Gemm("a library", "fp32", [Shape(list, 100.0, 1), Shape(list, 300.0, 4)])
    assert gemm.rate() == pytest.approx((100 + 4 * 300) / (1 + 4 * 2))


@pytest.fixture(scope="module")
def repositories(
    stock_embedder: Path, stock_reranker: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Packed and padded, with both models."""
    packed, padded = tmp_path_factory.mktemp("packed"), tmp_path_factory.mktemp("padded")
    for weights in (stock_embedder, stock_reranker):
        export_model(weights, ExportSettings(repository=packed))
        export_model(weights, ExportSettings(repository=padded), layout="padded")
    return packed, padded


def test_however_sequences_are_joined_rows_come_back_in_their_order(repositories: tuple[Path, Path]) -> None:
    rng = np.random.default_rng(SEED)
    sequences = [rng.integers(5, 60, size=length, dtype=np.int32) for length in (9, 3, 40, 17, 3, 28)]
    for role in ("embedder", "reranker"):
        alone = LocalModel(repositories[0], role).run_each(sequences)
        padded = LocalModel(repositories[1], role)
        for manner in ("in arrival order", "sorted", "one by one"):
            rows = run_joined(padded, sequences, manner, max_tokens=64)
            np.testing.assert_allclose(rows, alone, atol=1e-5)


@pytest.fixture
def _brief_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are not run for a second each, round after round, since no test looks at how fast they are."""
    monkeypatch.setattr(speed, "MEASURED_S", 0.05)


@pytest.mark.e2e
@pytest.mark.usefixtures("_brief_kernels")
def test_speed_is_measured_beside_everybody_and_every_row_checked(
    capsys: pytest.CaptureFixture[str],
    repositories: tuple[Path, Path],
    stock_embedder: Path,
    stock_reranker: Path,
    short_data: Path,
    tmp_path: Path,
) -> None:
    """Speeds are not asserted: a model of a few thousand parameters says nothing about them."""
    packed, padded = repositories
    report = tmp_path / "speed.md"
    arguments: list[Any] = ["--data", short_data, "--weights", stock_embedder, "--reranker-weights", stock_reranker]
    arguments += ["--repository", packed, "--padded", padded, "--num-skills", 24, "--num-requests", 4, "--rounds", 2]
    code = main(["bench", "speed", *map(str, arguments), "--num-clients", "4", "--out", str(report), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 0, found
    assert set(found["figures"]) == {"embedder", "reranker"}
    for figures in found["figures"].values():
        ours = {"packed fp32", *(f"padded fp32, {how}" for how in ("in arrival order", "sorted", "one by one"))}
        ours.add("Triton fp32, 4 clients")
        named = set(figures["contenders"]) | set(figures["absent"])
        assert ours <= set(figures["contenders"])
        assert set(PEER_NAMES.values()) <= named
        assert PEER_NAMES["torch"] in figures["contenders"]
        assert figures["contenders"]["packed fp32"]["share_of_limit"]["num"] == 2
        assert figures["gflop"] > 0
        assert set(figures["profiles"]["packed fp32"]["by_layer"]) == {"outside", "0", "1"}
    text = report.read_text()
    assert "## Embedding: goals" in text
    assert "## Reranking: where the time of packed fp32 goes" in text
    assert str(tmp_path) not in text


@pytest.mark.usefixtures("_brief_kernels")
def test_wrong_rows_are_exit_1(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    repositories: tuple[Path, Path],
    stock_embedder: Path,
    sample_data: Path,
) -> None:
    """The padded graph gives each row to its neighbour; nobody else takes part, to be quick."""
    joined = contenders.run_joined

    def shifted(local: LocalModel, *arguments: Any, **options: Any) -> Any:
        rows = joined(local, *arguments, **options)
        return np.roll(rows, 1, axis=0) if local.model.layout == "padded" else rows

    monkeypatch.setattr(contenders, "run_joined", shifted)
    monkeypatch.setattr(speed, "openers", lambda *_: {})
    monkeypatch.setattr(field.Servers, "__init__", _without_servers)
    packed, padded = repositories
    arguments: list[Any] = ["--data", sample_data, "--weights", stock_embedder, "--repository", packed]
    arguments += ["--padded", padded, "--num-skills", 12, "--num-requests", 2, "--rounds", 1]
    code = main(["bench", "speed", *map(str, arguments), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == 1
    contenders_found = found["figures"]["embedder"]["contenders"]
    assert contenders_found["packed fp32"]["passed"]
    assert not contenders_found["padded fp32, sorted"]["passed"]
    assert found["figures"]["embedder"]["absent"]["Triton fp32"] == "left out"


def _without_servers(self: Any, _stack: object, folders: Any) -> None:
    self.running, self.absent = {}, {f"Triton {precision}": "left out" for precision in folders}


def test_repositories_of_other_weights_are_refused(
    capsys: pytest.CaptureFixture[str], repositories: tuple[Path, Path], tiny_cls_embedder: Path, sample_data: Path
) -> None:
    arguments = ["--data", sample_data, "--weights", tiny_cls_embedder, "--repository", repositories[0]]
    assert main(["bench", "speed", *map(str, arguments), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["error"] == "RepositoryError"
