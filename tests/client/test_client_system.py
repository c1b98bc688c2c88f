"""The served line as a system: the searcher's own order, for the bundle's own skills."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from skillserve.cli import main
from skillserve.errors import BundleError, CardError, ServerError, ServerUnreachable
from skillserve.metrics import ranked
from skillserve.records import Query, Skill
from skillserve.settings import ClientSettings, EvaluateSettings, IndexSettings, SearchSettings, Settings
from skillserve.skillfile import read_queries, read_skills
from skillserve.systems import System, open_system
from skillserve_client import Searcher, build_bundle
from skillserve_client import system as module

RERANK_DEPTH = 3


@pytest.fixture
def skills(catalogue: Path) -> list[Skill]:
    return read_skills(catalogue)


@pytest.fixture
def queries(judged_file: Path) -> list[Query]:
    return read_queries(judged_file)


def settings_of(client: ClientSettings, rerank_depth: int = RERANK_DEPTH) -> Settings:
    return Settings(client=client, evaluate=EvaluateSettings(rerank_depth=rerank_depth))


@pytest.fixture
def system(bundles: Path, wire_settings: ClientSettings) -> System:
    return open_system(f"server:{bundles}", settings_of(wire_settings))


@pytest.mark.parametrize("rerank_depth", [0, RERANK_DEPTH])
def test_a_run_is_what_searches_answer(
    rerank_depth: int,
    bundles: Path,
    wire_settings: ClientSettings,
    queries: Sequence[Query],
    skills: Sequence[Skill],
) -> None:
    system = open_system(f"server:{bundles}", settings_of(wire_settings, rerank_depth))
    run = system.rank(queries, skills, depth=4)
    search = SearchSettings(candidates=4, rerank_depth=rerank_depth, top_k=4)
    with Searcher.connect(bundles, client=wire_settings, settings=search) as searcher:
        for query in queries:
            assert ranked(run[query.id]) == [hit.skill_id for hit in searcher.search(query.text).hits]
    assert set(system.digests) == ({"embedder", "reranker"} if rerank_depth else {"embedder"})
    assert system.name == f"server:{bundles}"


def test_searches_run_beside_each_other(
    bundles: Path,
    wire_settings: ClientSettings,
    wire_server: Any,
    queries: Sequence[Query],
    skills: Sequence[Skill],
) -> None:
    """Without reranking a search is one request, so two at once are two searches."""
    wire_server.delay_s = 0.05
    open_system(f"server:{bundles}", settings_of(wire_settings, 0)).rank(queries, skills, depth=4)
    assert wire_server.most_at_once > 1


def test_other_skills_than_the_bundles_are_refused(
    system: System, queries: Sequence[Query], skills: list[Skill], wire_server: Any
) -> None:
    more = [*skills[1:], Skill(id="new", name="new"), Skill(id="newer", name="newer")]
    with pytest.raises(BundleError, match=r"5 skills, 1 of which are not evaluated; 2 evaluated ones are not in it"):
        system.rank(queries, more, depth=4)
    assert not wire_server.requests


def test_a_degraded_answer_is_an_error(
    system: System, fake: Any, queries: Sequence[Query], skills: Sequence[Skill], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mixture of both stages would pass for the two-stage system."""
    monkeypatch.setattr(module.Searcher, "__init__", _with_inference(fake))
    fake.failures["reranker"] = ServerUnreachable("fake", got="nothing", wanted="an answer", fix="Wait.")
    with pytest.raises(ServerError, match=r"4 of 4 answers that are not ok: degraded; .*ServerUnreachable"):
        system.rank(queries, skills, depth=4)


def _with_inference(fake: Any) -> Any:
    before = Searcher.__init__

    def init(self: Searcher, bundle: Any, _: Any, settings: Any = None) -> None:
        before(self, bundle, fake, settings)

    return init


def test_a_server_with_another_model_is_refused_when_the_system_is_opened(
    bundles: Path, wire_server: Any, wire_settings: ClientSettings
) -> None:
    wire_server.digests["reranker"] = "9" * 64
    with pytest.raises(BundleError, match="skillserve index"):
        open_system(f"server:{bundles}", settings_of(wire_settings))
    assert open_system(f"server:{bundles}", settings_of(wire_settings, 0)).digests.keys() == {"embedder"}


def test_a_bundle_without_a_reranker_says_so(
    world: IndexSettings,
    catalogue: Path,
    fake: Any,
    wire_settings: ClientSettings,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (world.models / "skill_reranker" / "card.json").unlink()
    build_bundle(catalogue, fake, index=world)
    system = open_system(f"server:{world.bundles}", settings_of(wire_settings))
    assert set(system.digests) == {"embedder"}
    assert "without a reranker" in capsys.readouterr().err


def test_a_bundle_of_an_embedder_that_lacks_its_prompt_is_refused(
    world: IndexSettings, catalogue: Path, fake: Any, wire_settings: ClientSettings
) -> None:
    card = world.models / "skill_embedder" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"family": "qwen3"}))
    build_bundle(catalogue, fake, index=world)
    with pytest.raises(CardError, match="query prompt"):
        open_system(f"server:{world.bundles}", settings_of(wire_settings))


def test_the_command_measures_the_served_line(
    bundles: Path, wire_settings: ClientSettings, catalogue: Path, judged_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", f"server:{bundles}", "--url", wire_settings.url, "--rerank-depth", "0", "--json"]
    arguments += ["--queries", str(judged_file), "--skills", str(catalogue), "--resamples", "200"]
    assert main(arguments) == 0
    (served,) = json.loads(capsys.readouterr().out)["systems"]
    assert served["metrics"]["ndcg@10"]["mean"] == 1.0
