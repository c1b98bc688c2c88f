"""What builds leave in Milvus: collections that bundles own, an alias that follows the live one, and what goes."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.errors import (
    BundleError,
    ConfigError,
    ServerError,
)
from skillserve.settings import IndexSettings
from skillserve_client import build_bundle, open_bundle
from skillserve_client.milvus import MilvusStore
from skillserve_client.vectors import Entries, Identity, Mark

DIM = 16
IDENTITY = Identity(embedder="e" * 64, tokenizer="f" * 64, dim=DIM)


def unpublish(settings: IndexSettings, store: MilvusStore) -> None:
    """As a kill before publishing leaves it: a collection, and nothing that names it."""
    current = settings.bundles / "CURRENT"
    shutil.rmtree(settings.bundles / current.read_text().split()[0])
    current.unlink()
    store.connection.call("drop_alias", "skills")


def test_a_first_build_that_fails_leaves_no_alias(
    milvus: IndexSettings,
    store: MilvusStore,
    catalogue: Path,
    fake: Any,
    monkeypatch: pytest.MonkeyPatch,
    collections: Callable[[], list[str]],
) -> None:
    def full(_path: Path, _content: str) -> None:
        assert store.aliased("skills") is not None
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("skillserve_client.versions.write_text", full)
    with pytest.raises(BundleError, match="No space left"):
        build_bundle(catalogue, fake, index=milvus)
    assert (collections(), store.aliased("skills")) == ([], None)


def test_the_alias_follows_the_live_bundle_and_old_collections_go(
    milvus: IndexSettings,
    store: MilvusStore,
    catalogue: Path,
    fake: Any,
    append: Callable[..., None],
    collections: Callable[[], list[str]],
) -> None:
    """A reader that opened an older bundle goes on with its own collection for as long as that is kept."""
    settings, names = milvus.model_copy(update={"keep": 2}), []
    first = None
    for i in range(4):
        collection = build_bundle(catalogue, fake, index=settings).manifest.collection
        assert collection is not None
        names.append(collection.name)
        assert store.aliased("skills") == collection.name
        assert collections() == sorted(names[-2:])
        first = first or open_bundle(settings.bundles, index=settings)
        if i < 2:
            assert len(first.corpus.index.search(np.ones((1, DIM), np.float32), 9)[1][0]) == 5
        append({"id": f"new{i}", "name": "cloud"})
    assert len(set(names)) == 4
    assert first is not None
    assert not first.folder.exists()
    with pytest.raises(ServerError, match="Milvus"):
        first.corpus.index.search(np.ones((1, DIM), np.float32), 9)
    with pytest.raises(BundleError, match="no such collection"):
        store.load(names[0], IDENTITY)


def test_bundles_of_one_catalogue_share_a_collection_until_the_last_one_goes(
    milvus: IndexSettings,
    catalogue: Path,
    fake: Any,
    judged_file: Path,
    embedded: Callable[[], int],
    collections: Callable[[], list[str]],
) -> None:
    """Measuring a bundle anew embeds nothing and writes nothing to Milvus."""
    settings = milvus.model_copy(update={"keep": 1})
    first = build_bundle(catalogue, fake, index=settings).manifest
    embedded()
    measured = build_bundle(catalogue, fake, index=settings, queries=judged_file)
    assert measured.manifest.collection == first.collection
    assert embedded() == 3  # the requests
    forced = [build_bundle(catalogue, fake, index=settings, force=True).manifest.collection for _ in range(2)]
    assert first.collection not in forced
    assert collections() == sorted(each.name for each in forced if each)


def test_what_a_killed_build_left_in_milvus_is_gone_on_with(
    milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any, embedded: Callable[[], int]
) -> None:
    """Right entries stay, wrong ones are replaced, strangers go."""
    built = build_bundle(catalogue, fake, index=milvus).manifest.collection
    assert built is not None
    left = open_bundle(milvus.bundles, index=milvus).corpus.index
    left.delete(["img", "bare"])
    ones = np.ones((2, DIM), np.float32)
    left.upsert(Entries({"git": Mark(2, "", "old"), "stranger": Mark(9, "", "x")}, ones))
    unpublish(milvus, store)
    embedded()
    assert build_bundle(catalogue, fake, index=milvus).manifest.collection == built
    assert embedded() == 3
    corpus = open_bundle(milvus.bundles, index=milvus).corpus
    assert corpus.index.marks() == corpus.skills.marks()


def test_what_was_embedded_before_a_kill_is_not_embedded_again(
    milvus: IndexSettings,
    store: MilvusStore,
    catalogue: Path,
    fake: Any,
    monkeypatch: pytest.MonkeyPatch,
    embedded: Callable[[], int],
) -> None:
    """A failure does to a collection that stood already what a kill does to any: it stays as it is."""
    monkeypatch.setattr("skillserve_client.filling._SKILLS_A_WRITE", 2)
    build_bundle(catalogue, fake, index=milvus)
    open_bundle(milvus.bundles, index=milvus).corpus.index.delete(["img", "pdf", "git", "bare", "evil"])
    unpublish(milvus, store)
    infer = fake.infer

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if len(fake.calls) == 2:
            raise KeyboardInterrupt
        return infer(*arguments, **named)

    fake.calls.clear()
    fake.infer = interrupted
    with pytest.raises(KeyboardInterrupt):
        build_bundle(catalogue, fake, index=milvus)
    assert embedded() == 4
    fake.infer = infer
    build_bundle(catalogue, fake, index=milvus)
    assert embedded() == 1
    corpus = open_bundle(milvus.bundles, index=milvus).corpus
    assert corpus.index.marks() == corpus.skills.marks()


def test_two_folders_with_one_catalogue_have_collections_of_their_own(
    milvus: IndexSettings,
    store: MilvusStore,
    catalogue: Path,
    fake: Any,
    tmp_path: Path,
    append: Callable[..., None],
    collections: Callable[[], list[str]],
) -> None:
    """The alias belongs to one of them; the other's is told, and neither clears the other's away."""
    other = milvus.model_copy(update={"bundles": tmp_path / "other", "keep": 1})
    first = build_bundle(catalogue, fake, index=milvus).manifest.collection
    with pytest.raises(BundleError, match="alias `skills`"):
        build_bundle(catalogue, fake, index=other)
    store.connection.call("drop_alias", "skills")
    second = build_bundle(catalogue, fake, index=other).manifest.collection
    assert first is not None
    assert second is not None
    assert first.name != second.name
    for i in range(2):
        append({"id": f"new{i}", "name": "cloud"})
        build_bundle(catalogue, fake, index=other)
    assert second.name not in collections()
    assert len(open_bundle(milvus.bundles, index=milvus).corpus.index) == 5


def test_an_alias_that_others_use_is_left_alone_unless_forced(
    milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any, collections: Callable[[], list[str]]
) -> None:
    store.create("theirs", IDENTITY)
    store.connection.call("create_alias", "theirs", "skills")
    with pytest.raises(BundleError, match="collection `theirs`") as caught:
        build_bundle(catalogue, fake, index=milvus)
    assert "--alias" in caught.value.fix
    assert not fake.calls
    assert (store.aliased("skills"), collections()) == ("theirs", ["theirs"])
    assert not list(milvus.bundles.glob("[!.]*"))
    with pytest.raises(ConfigError, match="--alias"):
        build_bundle(catalogue, fake, index=milvus.model_copy(update={"alias": "theirs"}))
    forced = build_bundle(catalogue, fake, index=milvus, force=True).manifest.collection
    assert forced is not None
    assert store.aliased("skills") == forced.name
    assert "theirs" in collections()


def test_a_kill_between_alias_and_current_is_made_good_by_the_same_build(
    milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any, append: Callable[..., None]
) -> None:
    """The alias is ahead then; a build of something else does not take that for its own doing."""
    build_bundle(catalogue, fake, index=milvus)
    current = milvus.bundles / "CURRENT"
    before = current.read_text()
    append({"id": "new", "name": "cloud"})
    ahead = build_bundle(catalogue, fake, index=milvus).manifest
    current.write_text(before)
    more = catalogue.with_name("more.jsonl")
    more.write_text(catalogue.read_text() + '{"id": "newer", "name": "chart"}\n')
    with pytest.raises(BundleError, match="--force"):
        build_bundle(more, fake, index=milvus)
    assert ahead.collection is not None
    assert store.aliased("skills") == ahead.collection.name
    again = build_bundle(catalogue, fake, index=milvus).manifest
    assert again.collection == ahead.collection
    assert again.version != ahead.version


def test_of_two_builds_at_once_the_second_is_refused_and_clears_up(
    milvus: IndexSettings,
    store: MilvusStore,
    catalogue: Path,
    fake: Any,
    new_fake: Any,
    collections: Callable[[], list[str]],
) -> None:
    infer = fake.infer

    def overtaken(*arguments: Any, **named: Any) -> Any:
        build_bundle(catalogue, new_fake(), index=milvus)
        return infer(*arguments, **named)

    fake.infer = overtaken
    more = catalogue.with_name("more.jsonl")
    more.write_text(catalogue.read_text() + '{"id": "new", "name": "chart"}\n')
    with pytest.raises(BundleError, match="--force"):
        build_bundle(more, fake, index=milvus)
    live = open_bundle(milvus.bundles, index=milvus).manifest
    assert live.num_skills == 5
    assert live.collection is not None
    assert collections() == [live.collection.name] == [store.aliased("skills")]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_refused_build_leaves_what_another_one_of_its_catalogue_published(
    *,
    replaced: bool,
    milvus: IndexSettings,
    store: MilvusStore,
    catalogue: Path,
    fake: Any,
    new_fake: Any,
    collections: Callable[[], list[str]],
) -> None:
    """Both fill one collection; it stays also where a third build has moved the alias on."""
    infer, more = fake.infer, catalogue.with_name("more.jsonl")
    more.write_text(catalogue.read_text() + '{"id": "new", "name": "chart"}\n')
    published = []

    def overtaken(*arguments: Any, **named: Any) -> Any:
        published.append(build_bundle(catalogue, new_fake(), index=milvus).manifest)
        if replaced:
            build_bundle(more, new_fake(), index=milvus)
        return infer(*arguments, **named)

    fake.infer = overtaken
    with pytest.raises(BundleError, match="--force"):
        build_bundle(catalogue, fake, index=milvus)
    assert len(open_bundle(milvus.bundles / published[0].version, index=milvus).corpus.index) == 5
    live = open_bundle(milvus.bundles, index=milvus).manifest
    assert live.num_skills == 5 + replaced
    assert live.collection is not None
    assert store.aliased("skills") == live.collection.name
    assert len(collections()) == 1 + replaced


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("gone", "no such collection"),
        ("fewer", "4 vectors for 5 skills"),
        ("model", r"skillserve\.embedder 999999999999; wanted e{12}"),
        ("dimension", "vectors of 8 dimensions; wanted 16"),
    ],
)
def test_a_collection_that_is_not_the_bundles_is_refused(
    damage: str, message: str, milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any
) -> None:
    collection = build_bundle(catalogue, fake, index=milvus).manifest.collection
    assert collection is not None
    live = open_bundle(milvus.bundles, index=milvus)
    if damage == "fewer":
        live.corpus.index.delete(["pdf"])
    else:
        store.drop(collection.name)
        tokenizer = hashlib.sha256((live.folder / "embedder.tokenizer.json").read_bytes()).hexdigest()
        embedder = "9" * 64 if damage == "model" else "e" * 64
        if damage != "gone":
            dim = 8 if damage == "dimension" else DIM
            store.create(collection.name, Identity(embedder=embedder, tokenizer=tokenizer, dim=dim))
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(milvus.bundles, index=milvus)
    assert collection.name in caught.value.subject
    assert "skillserve index" in caught.value.fix
