"""Systems in process: BM25, an embedder, and an embedder with a reranker."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification, BertModel

from skillserve.card import read_card, write_card
from skillserve.cli import main
from skillserve.errors import CardError, UsageError
from skillserve.metrics import ranked
from skillserve.records import Query, Skill
from skillserve.settings import EvaluateSettings, Settings
from skillserve.skillfile import read_queries, read_skills
from skillserve.systems import open_system
from skillserve.text import skill_text
from skillserve_training import evaluate
from skillserve_training.bm25 import BM25

DEPTH, RERANK_DEPTH = 12, 5
SETTINGS = Settings(evaluate=EvaluateSettings(rerank_depth=RERANK_DEPTH))


@pytest.fixture(scope="module")
def skills(sample_data: Path) -> list[Skill]:
    return read_skills(sample_data / "skills" / "test.jsonl")[:40]


@pytest.fixture(scope="module")
def queries(sample_data: Path) -> list[Query]:
    return read_queries(sample_data / "queries" / "test.jsonl")[:9]


def ids_of(folder: Path, texts: Sequence[str], limit: int) -> list[list[int]]:
    """Token ids without special tokens, cut."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False).ids[:limit] for text in texts]


def by_hand(folder: Path, queries: Sequence[Query], skills: Sequence[Skill]) -> np.ndarray:
    """Similarities `[Q, S]`, one text after the other, mean pooling."""
    model, card = BertModel.from_pretrained(folder, add_pooling_layer=False).eval(), read_card(folder)
    requests = ids_of(folder, [query.text.strip() for query in queries], card.max_query_tokens)
    documents = ids_of(folder, [skill_text(skill) for skill in skills], card.max_tokens - 2)
    with torch.no_grad():
        rows = [model(torch.tensor([[2, *ids, 3]])).last_hidden_state[0].mean(0) for ids in (*requests, *documents)]
    unit = np.stack([(row / row.norm()).numpy() for row in rows])
    return np.asarray(unit[: len(queries)] @ unit[len(queries) :].T)


def logits_by_hand(folder: Path, query: Query, skills: Sequence[Skill]) -> list[float]:
    model, card = BertForSequenceClassification.from_pretrained(folder).eval(), read_card(folder)
    (request,) = ids_of(folder, [query.text.strip()], card.max_query_tokens)
    logits = []
    for side in ids_of(folder, [skill_text(skill) for skill in skills], card.max_tokens - 3 - len(request)):
        ids = [2, *request, 3, *side, 3]
        types = [0] * (len(request) + 2) + [1] * (len(side) + 1)
        with torch.no_grad():
            logits.append(model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits.item())
    return logits


def test_bm25_finds_shared_words_and_ranks_every_query() -> None:
    skills = [Skill(id=str(i), name=name) for i, name in enumerate(["merge pdf", "photo", "pdf pdf pdf viewer"])]
    queries = [
        Query(id="pdf", text="a PDF for the viewer"),
        Query(id="no", text="the \ud800"),
        Query(id="x", text="xyz"),
    ]
    run = BM25().rank(queries, skills, depth=2)
    assert list(run["pdf"]) == ["2", "0"]
    assert run["no"] == run["x"] == {"2": 0.0, "1": 0.0}


def test_bm25_orders_as_trec_does_and_its_cut_too(skills: list[Skill], queries: list[Query]) -> None:
    whole, top = (BM25().rank(queries, skills, depth=depth) for depth in (len(skills), 7))
    for query in queries:
        assert list(whole[query.id]) == ranked(whole[query.id])
        assert list(top[query.id]) == ranked(whole[query.id])[:7]


def test_an_embedder_ranks_by_cosine(tiny_embedder: Path, skills: list[Skill], queries: list[Query]) -> None:
    system = open_system(str(tiny_embedder), SETTINGS)
    run, wanted = system.rank(queries, skills, depth=DEPTH), by_hand(tiny_embedder, queries, skills)
    for query, similarities in zip(queries, wanted, strict=True):
        order = np.argsort(-similarities, kind="stable")[:DEPTH]
        assert ranked(run[query.id]) == [skills[place].id for place in order]
        np.testing.assert_allclose(list(run[query.id].values()), similarities[order], atol=1e-5)
    assert dict(system.digests) == {"embedder": read_card(tiny_embedder).digest}
    assert system.name == str(tiny_embedder)


def test_a_hybrid_embedder_ranks_by_cosine_and_words_over_all_skills(
    tiny_embedder: Path, tiny_reranker: Path, skills: list[Skill], queries: list[Query]
) -> None:
    settings = Settings(evaluate=EvaluateSettings(rerank_depth=0, lexical_weight=0.5))
    plain = open_system(str(tiny_embedder), SETTINGS).rank(queries, skills, depth=DEPTH)
    run, two = (
        open_system(spec, settings).rank(queries, skills, depth=DEPTH)
        for spec in (str(tiny_embedder), f"{tiny_embedder}+{tiny_reranker}")
    )
    words, near = BM25().rank(queries, skills, depth=len(skills)), by_hand(tiny_embedder, queries, skills)
    for query, similarities in zip(queries, near, strict=True):
        lexical = np.array([words[query.id][skill.id] for skill in skills])
        scores = similarities + 0.5 * lexical / lexical.max()
        order = np.argsort(-scores, kind="stable")[:DEPTH]
        assert ranked(run[query.id]) == ranked(two[query.id]) == [skills[place].id for place in order]
        np.testing.assert_allclose(list(run[query.id].values()), scores[order], atol=1e-5)
    assert [ranked(run[query.id]) for query in queries] != [ranked(plain[query.id]) for query in queries]


def test_an_embedder_ranks_by_a_request_and_its_best_part_with_its_words(
    tiny_embedder: Path, skills: list[Skill]
) -> None:
    """A request of four sentences has two parts; one of fewer counts as its own part."""
    one, two, three, four = "Slow sql query here.", "Explain its plan.", "Rename my photos.", "Plot the log."
    asked = [Query(id="long", text=f"{one} {two} {three} {four}"), Query(id="short", text=f"{one} {two}")]
    texts = {"long": [f"{one} {two} {three}", f"{two} {three} {four}"], "short": [f"{one} {two}"]}
    settings = Settings(evaluate=EvaluateSettings(lexical_weight=0.2, part_weight=1.5))
    run = open_system(str(tiny_embedder), settings).rank(asked, skills, depth=DEPTH)
    for query, near in zip(asked, by_hand(tiny_embedder, asked, skills), strict=True):
        parts = [Query(id=text, text=text) for text in texts[query.id]]
        words = BM25().rank(parts, skills, depth=len(skills))
        lexical = np.array([[words[part.id][skill.id] for skill in skills] for part in parts])
        of_parts = by_hand(tiny_embedder, parts, skills) + 0.2 * lexical / lexical.max()
        scores = near + 1.5 * of_parts.max(axis=0)
        order = np.argsort(-scores, kind="stable")[:DEPTH]
        assert ranked(run[query.id]) == [skills[place].id for place in order]
        np.testing.assert_allclose(list(run[query.id].values()), scores[order], atol=1e-5)


def test_a_reranker_reorders_the_top_and_leaves_the_rest(
    tiny_embedder: Path,
    tiny_reranker: Path,
    skills: list[Skill],
    queries: list[Query],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Figures beyond the rerank depth stay those of the first stage; pairs are framed in several parts."""
    monkeypatch.setattr(evaluate, "_PAIRS", 7)
    first = open_system(str(tiny_embedder), SETTINGS).rank(queries, skills, depth=DEPTH)
    system = open_system(f"{tiny_embedder}+{tiny_reranker}", SETTINGS)
    run = system.rank(queries, skills, depth=DEPTH)
    known = {skill.id: skill for skill in skills}
    changed = 0
    for query in queries:
        candidates, found = ranked(first[query.id]), ranked(run[query.id])
        logits = logits_by_hand(tiny_reranker, query, [known[skill] for skill in candidates[:RERANK_DEPTH]])
        assert found[:RERANK_DEPTH] == [candidates[place] for place in np.argsort(-np.array(logits), kind="stable")]
        assert found[RERANK_DEPTH:] == candidates[RERANK_DEPTH:]
        changed += found != candidates
    assert changed > 0
    assert system.digests["reranker"] == read_card(tiny_reranker).digest


def test_a_rerank_depth_of_nothing_is_the_first_stage(
    tiny_embedder: Path, tiny_reranker: Path, skills: list[Skill], queries: list[Query]
) -> None:
    settings = Settings(evaluate=EvaluateSettings(rerank_depth=0))
    one, two = (open_system(spec, settings) for spec in (str(tiny_embedder), f"{tiny_embedder}+{tiny_reranker}"))
    runs = [system.rank(queries, skills, depth=DEPTH) for system in (one, two)]
    assert [ranked(runs[0][query.id]) for query in queries] == [ranked(runs[1][query.id]) for query in queries]


def test_an_embedder_embeds_once_for_all_systems_on_it(
    tiny_embedder: Path, tiny_reranker: Path, skills: list[Skill], queries: list[Query], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    rank = evaluate.Embedder.rank

    def counted(self: evaluate.Embedder, *given: Sequence[object], depth: int) -> object:
        calls.append(depth)
        return rank(self, *given, depth=depth)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate.Embedder, "rank", counted)
    systems = [open_system(spec, SETTINGS) for spec in (str(tiny_embedder), f"{tiny_embedder}+{tiny_reranker}")]
    for system in systems:
        system.rank(queries, skills, depth=DEPTH)
    assert calls == [DEPTH]
    systems[0].rank(queries[:1], skills, depth=DEPTH)
    assert len(calls) == 2


@pytest.fixture
def copy(tiny_embedder: Path, tmp_path: Path) -> Path:
    """A weights folder to spoil."""
    return Path(shutil.copytree(tiny_embedder, tmp_path / "copy"))


def test_a_changed_prompt_is_refused(copy: Path) -> None:
    card = json.loads((copy / "card.json").read_text())
    (copy / "card.json").write_text(json.dumps(card | {"query_prompt": "Query: "}))
    with pytest.raises(CardError, match="digest"):
        open_system(str(copy), SETTINGS)


def test_an_instruction_tuned_embedder_without_its_prompt_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_card(copy, read_card(copy).model_copy(update={"family": "qwen3"}))
    monkeypatch.setattr("skillserve_training.systems.open_embedder", lambda _: pytest.fail("weights were opened"))
    with pytest.raises(CardError, match=r"without a query prompt.*2\.3 to 8\.8"):
        open_system(str(copy), SETTINGS)


def test_a_foreign_folder_is_told_how_to_get_a_card(copy: Path) -> None:
    (copy / "card.json").unlink()
    with pytest.raises(CardError, match=f"skillserve card --base {copy} --role embedder"):
        open_system(str(copy), SETTINGS)


def test_roles_and_folders_have_to_be_as_the_spec_says(
    tiny_embedder: Path, tiny_reranker: Path, tmp_path: Path
) -> None:
    for spec in (str(tiny_reranker), f"{tiny_reranker}+{tiny_embedder}", f"{tiny_embedder}+{tiny_embedder}"):
        with pytest.raises(CardError, match=r"EMBEDDER\+RERANKER"):
            open_system(spec, SETTINGS)
    for spec in (
        str(tmp_path / "absent"),
        f"{tiny_embedder}+absent",
        f"{tiny_embedder}+{tiny_reranker}+{tiny_reranker}",
        "colour:x",
    ):
        with pytest.raises(UsageError, match="run:FILE"):
            open_system(spec, SETTINGS)


def test_a_folder_with_a_plus_in_its_name_is_one_folder(tiny_embedder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_embedder, tmp_path / "a+b")
    assert open_system(str(folder), SETTINGS).name == str(folder)


def test_the_command_measures_them_side_by_side(
    tiny_embedder: Path, tiny_reranker: Path, sample_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    systems = ["bm25", str(tiny_embedder), f"{tiny_embedder}+{tiny_reranker}"]
    assert main(["evaluate", *systems, "--data", str(sample_data), "--resamples", "200", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [system["name"] for system in report["systems"]] == systems
    # Words beat random weights.
    for system in report["systems"][1:]:
        assert system["differences"]["ndcg@10"]["high"] < 0
    assert report["systems"][1]["metrics"]["ndcg@10"] != report["systems"][2]["metrics"]["ndcg@10"]
