"""Peers: the daemon and its adapter with a real library and random models, environments, and who may take part."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
from skillserve.settings import BenchSettings, SearchSettings
from skillserve.skillfile import read_queries, read_skills, split_file
from skillserve_bench.child import stop
from skillserve_bench.cli_peers import invited as invited_by
from skillserve_bench.peers.assignment import PeerModels, assign, read_models
from skillserve_bench.peers.daemon import Daemon, started_daemon
from skillserve_bench.peers.field import Invited
from skillserve_bench.peers.install import install, installation
from skillserve_bench.peers.roster import PADDED, ROSTER, chosen
from skillserve_bench.peers.target import PeerTarget, peer_payload

SEARCH = SearchSettings(rerank_depth=8, top_k=5)


class ByHand:
    """A search with transformers' own models and numpy: no sentence-transformers, no FAISS, no batches."""

    def __init__(self, embedder: Path, reranker: Path, skills: list[Skill], vectors: Any) -> None:
        # Opened by the one test that needs them: they take seconds to import.
        from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

        self._tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (embedder, reranker)]
        self._embedder = AutoModel.from_pretrained(embedder).eval()
        self._reranker = AutoModelForSequenceClassification.from_pretrained(reranker).eval()
        self._skills, self._vectors, self._card = skills, vectors, read_card(embedder)
        self._texts = [f"{skill.name} | {skill.description} | {skill.body or skill.description}" for skill in skills]

    def _embed(self, text: str, limit: int) -> Any:
        import torch

        read = self._tokenizers[0](text, truncation=True, max_length=limit, return_tensors="pt")
        with torch.no_grad():
            vector = self._embedder(**read).last_hidden_state[0].mean(dim=0)
        return (vector / vector.norm()).numpy()

    def search(self, request: str) -> list[str]:
        """Ids of five skills."""
        import torch

        rows = np.argsort(-(self._vectors @ self._embed(request, self._card.max_query_tokens + 2)))[:8].tolist()
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
    # A daemon is given vectors, whatever they mean; random ones lie further apart than those of random weights.
    vectors = np.random.default_rng(0).standard_normal((30, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    folder = tmp_path / "job"
    assign(folder, read_models(stock_embedder, stock_reranker), skills, vectors, SEARCH, threads=1)

    def searched_by_hand() -> list[list[str]]:
        by_hand = ByHand(stock_embedder, stock_reranker, skills, vectors)
        return [by_hand.search(text) for text in requests]

    async def story(wanted: list[list[str]], daemon: Daemon) -> None:
        assert daemon.threads == 1
        target = PeerTarget("st", daemon.port, 300.0, daemon.told)
        async with target.open() as send, target.open() as other, replace(target, timeout_s=1e-9).open() as hasty:
            payloads = [peer_payload("", text) for text in requests]
            # All at once, over two connections: each must get its own answer.
            answers = await asyncio.gather(*(way(each) for each in payloads for way in (send, other)))
            assert [each.decode().split("\n") for each in answers[::2]] == wanted
            assert answers[::2] == answers[1::2]
            assert len({tuple(each) for each in wanted}) > 1
            with pytest.raises(DeadlineExceeded):
                await hasty(payloads[0])
            with pytest.raises(ServerError, match="TypeError"):
                await send(b'{"strange": 1}')
            assert await send(payloads[0]) == answers[0]

    async def missed(daemon: Daemon) -> None:
        async with PeerTarget("st", daemon.port, 300.0, daemon.told).open():
            pass

    with ThreadPoolExecutor(1) as meanwhile:
        wanted = meanwhile.submit(searched_by_hand)  # while the daemon opens its library
        with started_daemon("st", "torch", Path(sys.executable), folder) as daemon:
            asyncio.run(story(wanted.result(), daemon))
    daemon.told.write_text("and then\nout of memory\n")
    with pytest.raises(ServerUnreachable, match="it last said: and then / out of memory"):
        asyncio.run(missed(daemon))


def test_a_daemon_that_cannot_start_says_what_it_said_last(tmp_path: Path, stock_embedder: Path) -> None:
    vectors, skills = np.eye(2, 32, dtype=np.float32), [Skill(id=name, name=name, description="-") for name in "ab"]
    assign(tmp_path / "job", read_models(stock_embedder, None), skills, vectors, SEARCH, threads=1)
    with (
        pytest.raises(ServerStartError, match="KeyError: 'no-such-engine'"),
        started_daemon("st", "no-such-engine", Path(sys.executable), tmp_path / "job"),
    ):
        pass


def test_a_daemon_learns_no_secret_and_nothing_of_our_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of an interpreter one that tells its environment, and no more."""
    telling = tmp_path / "python"
    telling.write_text("#!/bin/sh\nenv >&2\necho the end >&2\n")
    telling.chmod(0o755)
    names = ("HF_TOKEN", "client_secret", "DB_PASSWORD", "AWS_ACCESS_KEY_ID", "SKILLSERVE_CLIENT__URL", "VIRTUAL_ENV")
    for name in (*names, "ORDINARY"):
        monkeypatch.setenv(name, "value")
    with (
        pytest.raises(ServerStartError, match="the end"),
        started_daemon("st", "torch", telling, tmp_path),
    ):
        pass
    told = {line.split("=")[0] for line in (tmp_path / "stderr.txt").read_text().splitlines()}
    assert "ORDINARY" in told
    assert not told & set(names)


def test_a_process_that_ends_before_its_children_leaves_none_behind() -> None:
    """A shell that SIGTERM takes alone; stdout ends only when the child that holds it, too, has ended."""
    command = ["/bin/sh", "-c", "sleep 60 & echo begun; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        stop(process)
        assert select.select([process.stdout], [], [], 20)[0]
        assert os.read(process.stdout.fileno(), 1) == b""


@pytest.mark.parametrize(
    ("names", "levels", "options", "said"),
    [
        ([], ("search",), {"embedder"}, "option --peer-embedder"),
        ([PADDED], ("search",), {"embedder", "padded"}, "option --peer-embedder"),
        ([PADDED], ("search",), {"reranker", "padded"}, "option --peer-reranker"),
        (["st"], ("search",), {"reranker"}, "together with --peer-embedder"),
        (["st"], ("search",), {"padded"}, "option --peer-padded.*--peer triton-padded"),
        (["st"], ("embedder", "reranker"), set(), "got the levels embedder, reranker"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    names: list[str], levels: tuple[Any, ...], options: set[str], said: str, tmp_path: Path
) -> None:
    given = {option: tmp_path if option in options else None for option in ("embedder", "reranker", "padded")}
    with pytest.raises(UsageError, match=said):
        invited_by(names, BenchSettings(levels=levels), **given)
    assert invited_by(None, BenchSettings(levels=levels), embedder=None, reranker=None, padded=None) is None


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


def test_an_environment_that_was_made_is_recorded_with_its_versions_until_it_is_touched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tmp_path / "st.txt"
    wanted.write_text("# nothing\n")
    found = install(ROSTER["st"], tmp_path, wanted)
    assert (found.installed, found.reason) == (True, None)
    assert found.packages == {}
    assert installation(ROSTER["st"], tmp_path, wanted) == found
    python = tmp_path / "st" / "bin" / "python"
    real, lists_nothing = python.resolve(), tmp_path / "lists-nothing"
    lists_nothing.write_text(
        f'#!/bin/sh\ncase "$*" in *" list "*) echo ERROR: no list; exit 1;; esac\nexec {real} "$@"\n'
    )
    lists_nothing.chmod(0o755)
    python.unlink()
    python.symlink_to(lists_nothing)
    broken = install(ROSTER["st"], tmp_path, wanted)
    assert (broken.installed, broken.reason) == (False, "no list")
    (tmp_path / "st" / "peer.json").write_text(json.dumps(asdict(found)))
    assert installation(ROSTER["st"], tmp_path, wanted) == found
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            install(ROSTER["st"], tmp_path, wanted)
    assert not installation(ROSTER["st"], tmp_path, wanted).installed
    (tmp_path / "st" / "peer.json").write_text(json.dumps(asdict(found)))
    shutil.rmtree(tmp_path / "st" / "bin")
    assert "is gone" in (installation(ROSTER["st"], tmp_path, wanted).reason or "")


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


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
