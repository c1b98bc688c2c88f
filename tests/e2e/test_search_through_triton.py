"""Search through the real server equals a two-stage search written out by hand over the exported graphs."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from skillserve.card import read_card
from skillserve.errors import BundleError, QueryError
from skillserve.settings import ClientSettings, SearchSettings
from skillserve.skillfile import read_queries, read_skills
from skillserve_client import AsyncSearcher, Searcher
from skillserve_export import export_model
from skillserve_export.parity import PackedGraph

TOLERANCE = 1e-5
CANDIDATES, DEPTH = 30, 10

pytestmark = pytest.mark.e2e


def reference(server: Any, catalogue: Path, query: str) -> list[tuple[str, float]]:
    """Ids and scores of the reranked part, from texts, tokenizer and graphs alone."""
    folders = {role: server.repository / f"skill_{role}" for role in ("embedder", "reranker")}
    tokenizer = Tokenizer.from_file(str(folders["embedder"] / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    graphs = {role: PackedGraph(folder / "1" / "model.onnx") for role, folder in folders.items()}
    card = read_card(folders["embedder"])

    def ids(text: str, limit: int) -> list[int]:
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return found[:limit]

    skills = read_skills(catalogue)
    texts = [f"{s.name.strip()} | {s.description.strip()} | {s.body.strip() or s.description.strip()}" for s in skills]
    request = ids(query.strip(), card.max_query_tokens)
    sides = [ids(text, card.max_tokens - 2) for text in texts]
    rows = graphs["embedder"].run([np.asarray([2, *side, 3], np.int32) for side in (request, *sides)])
    order = np.argsort(-(rows[1:] @ rows[0]), kind="stable")[:DEPTH]
    room = card.max_tokens - 3 - len(request)
    pairs = [np.asarray([2, *request, 3, *sides[i][:room], 3], np.int32) for i in order]
    scores = graphs["reranker"].run(pairs)
    best = np.argsort(-scores, kind="stable")
    return [(skills[order[i]].id, float(scores[i])) for i in best]


@pytest.fixture(scope="module")
def requests(sample_data: Path) -> list[str]:
    return [query.text for query in read_queries(sample_data / "queries" / "test.jsonl")][:24]


@pytest.fixture(scope="module")
def settings() -> SearchSettings:
    return SearchSettings(candidates=CANDIDATES, rerank_depth=DEPTH, top_k=CANDIDATES)


def test_two_stage_search_equals_the_reference(
    server: Any, bundles: Path, catalogue: Path, requests: list[str], settings: SearchSettings
) -> None:
    with Searcher.connect(bundles, client=ClientSettings(url=server.url), settings=settings) as searcher:
        for query in requests[:6]:
            answer = searcher.search(query)
            expected = reference(server, catalogue, query)
            assert answer.status == "ok"
            assert answer.reranked
            assert len(answer.hits) == CANDIDATES
            assert [hit.rank for hit in answer.hits] == list(range(1, CANDIDATES + 1))
            np.testing.assert_allclose(
                [hit.score for hit in answer.hits[:DEPTH]], [score for _, score in expected], atol=TOLERANCE
            )
            assert {hit.skill_id for hit in answer.hits[:DEPTH]} == {skill for skill, _ in expected}
            assert set(answer.timings_ms) >= {"tokenise", "embed", "candidates", "rerank", "total"}
            assert answer.digests == {
                role: read_card(server.repository / f"skill_{role}").digest for role in ("embedder", "reranker")
            }


def test_asyncio_answers_what_blocking_answers(
    server: Any, bundles: Path, requests: list[str], settings: SearchSettings
) -> None:
    """All at once, so that the server joins them: company changes no answer."""
    client = ClientSettings(url=server.url)

    async def search_all() -> list[Any]:
        async with await AsyncSearcher.connect(bundles, client=client, settings=settings) as searcher:
            return await asyncio.gather(*(searcher.search(query) for query in requests))

    together = asyncio.run(search_all())
    with Searcher.connect(bundles, client=client, settings=settings) as searcher:
        for query, answer in zip(requests, together, strict=True):
            alone = searcher.search(query)
            assert [hit.skill_id for hit in alone.hits] == [hit.skill_id for hit in answer.hits]
            np.testing.assert_allclose(
                [hit.score for hit in alone.hits], [hit.score for hit in answer.hits], atol=TOLERANCE
            )


def test_the_command_answers_in_json(
    server: Any, bundles: Path, skillserve: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """One object a request; a long request is cut and says so; an empty one is refused with exit code 2."""
    common = ("--bundles", str(bundles), "--url", server.url, "--json")
    answer = json.loads(skillserve("search", "find a slow sql query " * 5_000, *common).stdout)
    assert answer["hits"]
    assert any("token" in note for note in answer["notes"])
    refused = skillserve("search", "  ", *common, check=False)
    assert refused.returncode == QueryError.exit_code
    assert "skillserve search" in refused.stderr


def test_a_bundle_of_another_model_is_refused(
    serve: Callable[..., Any], bundles: Path, tiny_cls_embedder: Path, tiny_reranker: Path, tmp_path: Path
) -> None:
    """The server's digest must be the bundle's: scores of two models mean nothing together."""
    from skillserve.settings import ExportSettings

    for weights in (tiny_cls_embedder, tiny_reranker):
        export_model(weights, ExportSettings(repository=tmp_path))
    with serve(tmp_path) as other, pytest.raises(BundleError, match="skillserve index"):
        Searcher.connect(bundles, client=ClientSettings(url=other.url))


def test_faulty_catalogues_publish_nothing(
    server: Any, tmp_path: Path, skillserve: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Every fault with its line; no bundle appears."""
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"id": "1", "name": "fine"}\nnonsense\n{"id": "2"}\n{"id": "1", "name": "again"}\n\xff\n')
    arguments = ("--models", str(server.repository), "--bundles", str(tmp_path / "bundles"), "--url", server.url)
    result = skillserve("index", str(bad), *arguments, check=False)
    assert result.returncode == 2
    for line in ("bad.jsonl:2", "bad.jsonl:3", "bad.jsonl:4", "bad.jsonl:5"):
        assert line in result.stderr
    assert not list(tmp_path.glob("bundles/*"))


def test_hostile_skills_are_served_like_others(
    server: Any, tmp_path: Path, skillserve: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Frame tokens, NUL, direction marks and nothing at all in a skill: indexed, searched, and never an error."""
    hostile = ["[SEP] [CLS] [PAD]", "<|im_end|>\n<|im_start|>system", "a\u0000b", "\u202egnp.exe", "\ud800", ""]
    source = tmp_path / "hostile.jsonl"
    rows = [{"id": f"h{i}", "name": f"skill {i}", "body": text} for i, text in enumerate(hostile)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = ("--bundles", str(tmp_path / "bundles"), "--url", server.url)
    skillserve("index", str(source), "--models", str(server.repository), *where)
    answer = json.loads(skillserve("search", "[SEP] <|im_end|> \u202e", *where, "--top-k", "10", "--json").stdout)
    assert {hit["skill_id"] for hit in answer["hits"]} == {row["id"] for row in rows}
    assert all(np.isfinite(hit["score"]) for hit in answer["hits"])


def test_skill_md_folders_are_indexed(
    server: Any, tmp_path: Path, skillserve: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = Path(__file__).parent.parent.parent / "examples" / "skills"
    where = ("--models", str(server.repository), "--bundles", str(tmp_path), "--url", server.url, "--json")
    built = json.loads(skillserve("index", str(folder), *where).stdout)
    assert built["num_skills"] == len(list(folder.iterdir()))
    again = json.loads(skillserve("index", str(folder), *where).stdout)
    assert again["status"] == "current"
