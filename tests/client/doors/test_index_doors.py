"""Bundles whose vectors FAISS or Milvus (Lite) keeps: built, switched and searched alike."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from skillserve.errors import (
    BundleError,
    ConfigError,
    RepositoryError,
    ServerUnreachable,
    SkillserveError,
)
from skillserve.settings import IndexSettings, ScoreSettings, Settings
from skillserve_client import build_bundle, open_bundle
from skillserve_client.batch.orders import Order
from skillserve_client.milvus import MilvusStore

DIM = 16


def test_an_opened_bundle_says_where_its_vectors_are(index: IndexSettings, catalogue: Path, fake: Any) -> None:
    built = build_bundle(catalogue, fake, index=index).manifest
    bundle = open_bundle(index.bundles, index=index)
    assert bundle.manifest == built
    assert bundle.manifest.index_kind == ("flat" if index.kind == "faiss" else "milvus")
    assert (bundle.folder / "index.faiss").exists() == (index.kind == "faiss")
    assert (len(bundle.corpus.index), bundle.corpus.index.dim) == (5, DIM)
    assert bundle.corpus.index.marks() == bundle.corpus.skills.marks()
    assert bundle.corpus.skills.marks()["pdf"].namespace == "acme"


def test_both_kinds_answer_alike_to_the_last_bit(
    world: IndexSettings,
    milvus: IndexSettings,
    catalogue: Path,
    fake: Any,
    tmp_path: Path,
    append: Callable[..., None],
    hits: Callable[..., list[tuple[str, float]]],
) -> None:
    """Words and parts included, which are weighed against the similarities of all skills."""
    append(*({"id": f"t{i}", "name": "pdf", "description": "merge pdf"} for i in range(3)))
    other = milvus.model_copy(update={"bundles": tmp_path / "in-milvus"})
    for settings in (world, other):
        build_bundle(catalogue, fake, index=settings.model_copy(update={"lexical_weight": 0.3}))
    for search in ({"lexical_weight": 0}, {"lexical_weight": 0, "rerank_depth": 0}, {}, {"part_weight": 1.0}):
        found = [hits(settings, "merge the pdf. send an email. plot", top_k=8, **search) for settings in (world, other)]
        assert found[0] == found[1]
        assert len(found[0]) == 8


def test_unchanged_skills_keep_their_vectors_and_the_rest_is_embedded(
    index: IndexSettings, catalogue: Path, fake: Any, computed: Any, embedded: Callable[[], int]
) -> None:
    build_bundle(catalogue, fake, index=index)
    assert embedded() == 5
    rows = [json.loads(line) for line in catalogue.read_text().splitlines()]
    rows[0]["description"] = "chart plot"
    del rows[2]
    rows = [rows[3], *rows[:3], {"id": "new", "name": "cloud"}]
    catalogue.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_bundle(catalogue, fake, index=index)
    assert embedded() == 2
    corpus = open_bundle(index.bundles, index=index).corpus
    skills = [corpus.skills.skill(row) for row in range(5)]
    assert [skill.id for skill in skills] == ["evil", "img", "pdf", "bare", "new"]
    vectors = computed("embedder", corpus.embedder.skills(skills))
    assert corpus.index.vectors([skill.id for skill in skills]).tobytes() == vectors.tobytes()
    assert corpus.index.search(vectors, 1)[1].ravel().tolist() == [0, 1, 2, 3, 4]
    assert build_bundle(catalogue, fake, index=index).current
    build_bundle(catalogue, fake, index=index, force=True)
    assert embedded() == 5


def test_vectors_of_another_model_or_tokenizer_are_not_kept(
    index: IndexSettings, catalogue: Path, fake: Any, embedded: Callable[[], int]
) -> None:
    build_bundle(catalogue, fake, index=index)
    embedded()
    path = index.models / "skill_embedder" / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    build_bundle(catalogue, fake, index=index)
    assert embedded() == 5


@pytest.mark.parametrize("at", ["embedding", "CURRENT"])
def test_a_build_that_fails_changes_nothing(
    at: str,
    index: IndexSettings,
    store: MilvusStore,
    catalogue: Path,
    fake: Any,
    monkeypatch: pytest.MonkeyPatch,
    append: Callable[..., None],
    collections: Callable[[], list[str]],
) -> None:
    """Neither CURRENT nor the alias, and no collection of it stays."""
    before = build_bundle(catalogue, fake, index=index).manifest
    standing, alias = collections(), store.aliased("skills")
    entries, seen = sorted(index.bundles.iterdir()), []
    append({"id": "new", "name": "cloud"})
    real = os.fsync

    def full(descriptor: int) -> None:
        if list(index.bundles.glob(".CURRENT.*")):
            seen.append(store.aliased("skills"))
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    if at == "embedding":
        fake.failures["embedder"] = ServerUnreachable("server", got="nothing", wanted="an answer", fix="Start it.")
    else:
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SkillserveError):
        build_bundle(catalogue, fake, index=index)
    assert open_bundle(index.bundles, index=index).version == before.version
    assert sorted(index.bundles.iterdir()) == entries
    assert (collections(), store.aliased("skills")) == (standing, alias)
    if at == "CURRENT" and index.kind == "milvus":
        assert seen[0] not in {alias, None}  # it had been moved, and was moved back


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_what_fails_after_current_changed_leaves_the_new_bundle_live_and_whole(
    failure: BaseException,
    index: IndexSettings,
    store: MilvusStore,
    catalogue: Path,
    fake: Any,
    monkeypatch: pytest.MonkeyPatch,
    append: Callable[..., None],
) -> None:
    """The folder is flushed after the rename: that may fail, or be when Ctrl-C comes."""
    before = build_bundle(catalogue, fake, index=index).manifest
    line, real = (index.bundles / "CURRENT").read_text(), os.fsync
    append({"id": "new", "name": "cloud"})

    def late(descriptor: int) -> None:
        if (index.bundles / "CURRENT").read_text() != line:
            raise failure
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", late)
        with pytest.raises((BundleError, KeyboardInterrupt)) as caught:
            build_bundle(catalogue, fake, index=index)
    if isinstance(caught.value, BundleError):
        assert "new bundle is live" in caught.value.fix
    live = open_bundle(index.bundles, index=index).manifest
    assert (live.parent, live.num_skills) == (before.version, 6)
    if live.collection is not None:
        assert store.aliased("skills") == live.collection.name
    assert build_bundle(catalogue, fake, index=index).current


def test_a_bundle_moves_from_faiss_to_milvus_and_back(
    world: IndexSettings,
    milvus: IndexSettings,
    catalogue: Path,
    fake: Any,
    collections: Callable[[], list[str]],
    hits: Callable[..., list[tuple[str, float]]],
) -> None:
    """Another kind is another bundle, and vectors travel instead of being made again."""
    for settings in (world, milvus, milvus.model_copy(update={"kind": "faiss", "keep": 1}), world):
        assert not build_bundle(catalogue, fake, index=settings, force=settings is world and bool(fake.calls)).current
        assert hits(settings.model_copy(update={"uri": milvus.uri}), "merge pdf")[0][0] == "pdf"
    assert len(collections()) <= 1


def test_bundles_from_before_there_was_a_choice_are_read(
    world: IndexSettings,
    catalogue: Path,
    fake: Any,
    append: Callable[..., None],
    embedded: Callable[[], int],
    hits: Callable[..., list[tuple[str, float]]],
) -> None:
    """Their manifests name no collection, their tables have no digests: they answer, and are embedded anew once."""
    build_bundle(catalogue, fake, index=world)
    before, folder = hits(world, "merge pdf"), open_bundle(world.bundles).folder
    table = pq.read_table(folder / "skills.parquet").drop_columns(["digest"])
    pq.write_table(table, folder / "skills.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["collection"]
    content = (folder / "skills.parquet").read_bytes()
    manifest["files"]["skills.parquet"] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sealed = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (world.bundles / "CURRENT").write_text(f"{folder.name} {sealed}\n")
    assert hits(world, "merge pdf") == before
    append({"id": "new", "name": "cloud"})
    embedded()
    build_bundle(catalogue, fake, index=world)
    assert embedded() == 6


@pytest.mark.parametrize("search", [{}, {"lexical_weight": 0.3}, {"part_weight": 1.0}])
def test_a_search_within_a_namespace_is_the_whole_one_without_the_others(
    search: dict[str, float],
    index: IndexSettings,
    catalogue: Path,
    fake: Any,
    append: Callable[..., None],
    hits: Callable[..., list[tuple[str, float]]],
) -> None:
    """Only skills of the namespace are found, scored as in the whole catalogue, and reranked."""
    append(*({"id": f"a{i}", "name": "pdf", "body": "table " * i, "namespace": "acme"} for i in range(3)))
    build_bundle(catalogue, fake, index=index.model_copy(update={"lexical_weight": 0.3}))
    wanted = {"lexical_weight": 0, "rerank_depth": 0} | search
    everything = hits(index, "merge pdf", top_k=8, **wanted)
    assert len(everything) == 8
    acme = [found for found in everything if found[0] in {"pdf", "a0", "a1", "a2"}]
    assert hits(index, "merge pdf", top_k=8, namespace="acme", **wanted) == acme
    fake.calls.clear()
    assert len(hits(index, "merge pdf", top_k=3, namespace="acme", **(wanted | {"rerank_depth": 20}))) == 3
    assert [len(sequences) for role, sequences, _ in fake.calls if role == "reranker"] == [4]
    with pytest.raises(ConfigError, match="'nobody'"):
        hits(index, "merge pdf", namespace="nobody")


def test_an_index_that_one_process_may_hold_is_refused_before_it_goes_to_many(
    index: IndexSettings, uri: str, catalogue: Path, fake: Any, tmp_path: Path
) -> None:
    """A bundle that FAISS keeps goes on to the models, which are not there, whatever address is set."""
    build_bundle(catalogue, fake, index=index)
    shutil.rmtree(index.models)
    score = ScoreSettings(engine="ray")
    named = index.model_copy(update={"uri": uri})
    order = Order(job="rank", sources=(tmp_path / "requests.jsonl",), settings=Settings(index=named, score=score))
    if index.kind == "faiss":
        with pytest.raises(RepositoryError, match=r"no readable config\.pbtxt"):
            order.described()
    else:
        with pytest.raises(ConfigError, match=r"lite\.db.*one process at a time"):
            order.described()
