"""Peers: the daemon and its adapter with a real library and random models, environments, and who may take part."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from skillserve.card import read_card, write_card
from skillserve.cli import main
from skillserve.errors import (
    CardError,
    DeadlineExceeded,
    ServerError,
    ServerStartError,
    ServerUnreachable,
    UsageError,
)
from skillserve.records import Skill
from skillserve.settings import SearchSettings
from skillserve.skillfile import read_queries, read_skills, split_file
from skillserve_bench.peers.assignment import PeerModels, assign, read_models
from skillserve_bench.peers.daemon import started_daemon
from skillserve_bench.peers.field import Invited
from skillserve_bench.peers.install import install, installation
from skillserve_bench.peers.roster import PADDED, ROSTER, chosen
from skillserve_bench.peers.target import PeerTarget, peer_payload

SEARCH = SearchSettings(rerank_depth=8, top_k=5)


class ByHand:
    """A search with transformers' own models and numpy: no sentence-transformers, no FAISS, no batches."""

    def __init__(self, embedder: Path, reranker: Path, skills: list[Skill]) -> None:
        self._tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (embedder, reranker)]
        self._embedder = AutoModel.from_pretrained(embedder).eval()
        self._reranker = AutoModelForSequenceClassification.from_pretrained(reranker).eval()
        self._skills, self._card = skills, read_card(embedder)
        self._texts = [f"{skill.name} | {skill.description} | {skill.body or skill.description}" for skill in skills]
        self.vectors = np.stack([self._embed(text, self._card.max_tokens) for text in self._texts])

    def _embed(self, text: str, limit: int) -> Any:
        read = self._tokenizers[0](text, truncation=True, max_length=limit, return_tensors="pt")
        with torch.no_grad():
            vector = self._embedder(**read).last_hidden_state[0].mean(dim=0)
        return (vector / vector.norm()).numpy()

    def search(self, request: str) -> list[str]:
        """Ids of five skills."""
        rows = np.argsort(-(self.vectors @ self._embed(request, self._card.max_query_tokens + 2)))[:8].tolist()
        with torch.no_grad():
            scores = [
                self._reranker(
                    **self._tokenizers[1](
                        request,
                        self._texts[row],
                        truncation=True,
                        max_length=self._card.max_tokens,
                        return_tensors="pt",
                    )
                ).logits.item()
                for row in rows
            ]
        return [self._skills[rows[place]].id for place in np.argsort(-np.array(scores))[:5]]


def test_a_daemon_ranks_as_the_models_by_hand_answers_whoever_asked_and_is_missed_when_it_is_gone(
    stock_embedder: Path, stock_reranker: Path, sample_data: Path, tmp_path: Path
) -> None:
    """One story, since a daemon takes seconds to open its library."""
    skills = read_skills(split_file(sample_data, "skills", "test"))[:30]
    requests = [query.text for query in read_queries(split_file(sample_data, "queries", "test"))[:12]]
    by_hand = ByHand(stock_embedder, stock_reranker, skills)
    folder = tmp_path / "job"
    assign(folder, read_models(stock_embedder, stock_reranker), skills, by_hand.vectors, SEARCH, threads=1)

    async def story() -> None:
        with started_daemon("st", "torch", Path(sys.executable), folder) as daemon:
            assert daemon.threads == 1
            target = PeerTarget("st", daemon.port, timeout_s=300.0)
            async with target.open() as send, target.open() as other, replace(target, timeout_s=1e-9).open() as hasty:
                payloads = [peer_payload("", text) for text in requests]
                # All at once, over two connections: each must get its own answer.
                answers = await asyncio.gather(*(way(each) for each in payloads for way in (send, other)))
                wanted = [by_hand.search(text) for text in requests]
                assert [each.decode().split("\n") for each in answers[::2]] == wanted
                assert answers[::2] == answers[1::2]
                assert len({tuple(each) for each in wanted}) > 1
                with pytest.raises(DeadlineExceeded):
                    await hasty(payloads[0])
                with pytest.raises(ServerError, match="TypeError"):
                    await send(b'{"strange": 1}')
                assert await send(payloads[0]) == answers[0]
        with pytest.raises(ServerUnreachable):
            async with target.open():
                pass

    asyncio.run(story())


def test_a_daemon_that_cannot_start_says_what_it_said_last(tmp_path: Path, stock_embedder: Path) -> None:
    vectors, skills = np.eye(2, 32, dtype=np.float32), [Skill(id=name, name=name, description="-") for name in "ab"]
    assign(tmp_path / "job", read_models(stock_embedder, None), skills, vectors, SEARCH, threads=1)
    with (
        pytest.raises(ServerStartError, match="KeyError: 'no-such-engine'"),
        started_daemon("st", "no-such-engine", Path(sys.executable), tmp_path / "job"),
    ):
        pass


def test_what_cannot_be_installed_is_named_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wanted = tmp_path / "st.txt"
    wanted.write_text("skillserve-has-no-such-peer==1.0\n")
    peer = ROSTER["st"]
    found = install(peer, tmp_path, wanted)
    assert not found.installed
    assert "skillserve-has-no-such-peer==1.0" in (found.reason or "")
    assert installation(peer, tmp_path, wanted) == found
    wanted.write_text("another==1.0\n")
    assert "other requirements" in (installation(peer, tmp_path, wanted).reason or "")
    capsys.readouterr()
    assert main(["bench", "peers", "list", "--peers-folder", str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == set(ROSTER)
    assert "no environment" in listed["infinity"]["reason"]
    assert listed[PADDED]["installed"]


def test_an_environment_that_was_made_is_recorded_with_its_versions(tmp_path: Path) -> None:
    wanted = tmp_path / "st.txt"
    wanted.write_text("# nothing\n")
    found = install(ROSTER["st"], tmp_path, wanted)
    assert (found.installed, found.reason) == (True, None)
    assert found.packages == {}
    assert installation(ROSTER["st"], tmp_path, wanted) == found
    shutil.rmtree(tmp_path / "st" / "bin")
    assert "is gone" in (installation(ROSTER["st"], tmp_path, wanted).reason or "")


def test_every_peer_with_an_environment_has_pinned_requirements() -> None:
    for peer in ROSTER.values():
        if peer.requirements:
            lines = [line for line in peer.requirements.read_text().splitlines() if not line.startswith("#")]
            assert lines
            assert all("==" in line for line in lines)
            assert any(line.split("==")[0].split("[")[0] == peer.main_package for line in lines)
    assert [peer.name for peer in chosen(["infinity", "st", "infinity"])] == ["infinity", "st"]
    with pytest.raises(UsageError, match="one of st"):
        chosen(["nobody"])


def test_models_that_peers_cannot_load_or_that_are_not_served_are_refused(
    stock_embedder: Path, tiny_embedder: Path, tiny_reranker: Path, tmp_path: Path
) -> None:
    late = shutil.copytree(tiny_reranker, tmp_path / "late")
    write_card(late, read_card(late).model_copy(update={"digest": "", "score_kind": "max_sim"}))
    with pytest.raises(UsageError, match="scores `max_sim`"):
        read_models(stock_embedder, late)
    card, other = read_card(stock_embedder), read_card(tiny_embedder)
    models = PeerModels(embedder=stock_embedder, embedder_card=card, reranker=None, reranker_card=None)
    invited = Invited(peers=chosen(["st"]), folder=tmp_path, models=models, padded=None)
    invited.require(card, reranks=False)
    with pytest.raises(CardError, match="which is served"):
        invited.require(other, reranks=False)
    with pytest.raises(UsageError, match="no --peer-reranker"):
        invited.require(card, reranks=True)
    with pytest.raises(UsageError, match="no --peer-embedder"):
        replace(invited, models=None).require(card, reranks=False)
    with pytest.raises(UsageError, match="no --peer-padded"):
        replace(invited, peers=chosen([PADDED])).require(card, reranks=False)
