"""Bundles whose vectors FAISS or Milvus (Lite) keeps: built, switched, searched and cleared away alike."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from skillserve.config import load_settings
from skillserve.errors import (
    BundleError,
    ConfigError,
    DeadlineExceeded,
    MissingExtraError,
    ServerError,
    ServerUnreachable,
    SkillserveError,
)
from skillserve.settings import IndexSettings, SearchSettings
from skillserve_client import Searcher, build_bundle, open_bundle
from skillserve_client.milvus import MilvusStore
from skillserve_client.vectors import Entries, Identity, Mark

DIM = 16
TOKEN = "root:s3cret-of-nobody"  # noqa: S105


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One Milvus Lite for this file; tests clear away what they put there."""
    return str(tmp_path_factory.mktemp("milvus") / "lite.db")


@pytest.fixture
def store(uri: str) -> Iterator[MilvusStore]:
    """A look of one's own into that Milvus."""
    store = MilvusStore.connect(IndexSettings(uri=uri), {})
    yield store
    for name in collections(store):
        store.drop(name)
    if "skills" in store.connection.call("list_aliases")["aliases"]:
        store.connection.call("drop_alias", "skills")
    store.close()


@pytest.fixture
def milvus(world: IndexSettings, uri: str, store: MilvusStore) -> IndexSettings:
    """Settings of a bundle in Milvus."""
    assert not collections(store)
    return world.model_copy(update={"kind": "milvus", "uri": uri, "alias": "skills"})


@pytest.fixture(params=["faiss", "milvus"])
def index(request: pytest.FixtureRequest, world: IndexSettings) -> IndexSettings:
    """Settings of either kind."""
    settings: IndexSettings = world if request.param == "faiss" else request.getfixturevalue("milvus")
    return settings


def collections(store: MilvusStore) -> list[str]:
    return sorted(store.connection.call("list_collections"))


def append(catalogue: Path, *rows: dict[str, str]) -> None:
    catalogue.write_text(catalogue.read_text() + "".join(json.dumps(row) + "\n" for row in rows))


def embedded(fake: Any) -> int:
    """Sequences that the embedder was sent since the last look."""
    count = sum(len(sequences) for role, sequences, _ in fake.calls if role == "embedder")
    fake.calls.clear()
    return count


def unpublish(settings: IndexSettings, store: MilvusStore) -> None:
    """As a kill before publishing leaves it: a collection, and nothing that names it."""
    current = settings.bundles / "CURRENT"
    shutil.rmtree(settings.bundles / current.read_text().split()[0])
    current.unlink()
    store.connection.call("drop_alias", "skills")


def hits(settings: IndexSettings, fake: Any, query: str, **search: Any) -> list[tuple[str, float]]:
    searcher = Searcher(open_bundle(settings.bundles, index=settings), fake, SearchSettings(**search))
    return [(hit.skill_id, hit.similarity) for hit in searcher.search(query).hits]


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
    world: IndexSettings, milvus: IndexSettings, catalogue: Path, fake: Any, tmp_path: Path
) -> None:
    """Words and parts included, which are weighed against the similarities of all skills."""
    append(catalogue, *({"id": f"t{i}", "name": "pdf", "description": "merge pdf"} for i in range(3)))
    other = milvus.model_copy(update={"bundles": tmp_path / "in-milvus"})
    for settings in (world, other):
        build_bundle(catalogue, fake, index=settings.model_copy(update={"lexical_weight": 0.3}))
    for search in ({"lexical_weight": 0}, {"lexical_weight": 0, "rerank_depth": 0}, {}, {"part_weight": 1.0}):
        found = [
            hits(settings, fake, "merge the pdf. send an email. plot", top_k=8, **search) for settings in (world, other)
        ]
        assert found[0] == found[1]
        assert len(found[0]) == 8


def test_unchanged_skills_keep_their_vectors_and_the_rest_is_embedded(
    index: IndexSettings, catalogue: Path, fake: Any, computed: Any
) -> None:
    build_bundle(catalogue, fake, index=index)
    assert embedded(fake) == 5
    rows = [json.loads(line) for line in catalogue.read_text().splitlines()]
    rows[0]["description"] = "chart plot"
    del rows[2]
    rows = [rows[3], *rows[:3], {"id": "new", "name": "cloud"}]
    catalogue.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_bundle(catalogue, fake, index=index)
    assert embedded(fake) == 2
    corpus = open_bundle(index.bundles, index=index).corpus
    skills = [corpus.skills.skill(row) for row in range(5)]
    assert [skill.id for skill in skills] == ["evil", "img", "pdf", "bare", "new"]
    vectors = computed("embedder", corpus.embedder.skills(skills))
    assert corpus.index.vectors([skill.id for skill in skills]).tobytes() == vectors.tobytes()
    assert corpus.index.search(vectors, 1)[1].ravel().tolist() == [0, 1, 2, 3, 4]
    assert build_bundle(catalogue, fake, index=index).current
    build_bundle(catalogue, fake, index=index, force=True)
    assert embedded(fake) == 5


def test_vectors_of_another_model_or_tokenizer_are_not_kept(index: IndexSettings, catalogue: Path, fake: Any) -> None:
    build_bundle(catalogue, fake, index=index)
    embedded(fake)
    path = index.models / "skill_embedder" / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    build_bundle(catalogue, fake, index=index)
    assert embedded(fake) == 5


@pytest.mark.parametrize("at", ["embedding", "CURRENT"])
def test_a_build_that_fails_changes_nothing(
    at: str, index: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither CURRENT nor the alias, and no collection of it stays."""
    before = build_bundle(catalogue, fake, index=index).manifest
    standing, alias = collections(store), store.aliased("skills")
    entries, seen = sorted(index.bundles.iterdir()), []
    append(catalogue, {"id": "new", "name": "cloud"})
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
    assert (collections(store), store.aliased("skills")) == (standing, alias)
    if at == "CURRENT" and index.kind == "milvus":
        assert seen[0] not in {alias, None}  # it had been moved, and was moved back


def test_a_first_build_that_fails_leaves_no_alias(
    milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _content: str) -> None:
        assert store.aliased("skills") is not None
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("skillserve_client.versions.write_text", full)
    with pytest.raises(BundleError, match="No space left"):
        build_bundle(catalogue, fake, index=milvus)
    assert (collections(store), store.aliased("skills")) == ([], None)


def test_the_alias_follows_the_live_bundle_and_old_collections_go(
    milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any
) -> None:
    """A reader that opened an older bundle goes on with its own collection for as long as that is kept."""
    settings, names = milvus.model_copy(update={"keep": 2}), []
    first = None
    for i in range(4):
        collection = build_bundle(catalogue, fake, index=settings).manifest.collection
        assert collection is not None
        names.append(collection.name)
        assert store.aliased("skills") == collection.name
        assert collections(store) == sorted(names[-2:])
        first = first or open_bundle(settings.bundles, index=settings)
        if i < 2:
            assert len(first.corpus.index.search(np.ones((1, DIM), np.float32), 9)[1][0]) == 5
        append(catalogue, {"id": f"new{i}", "name": "cloud"})
    assert len(set(names)) == 4
    assert first is not None
    assert not first.folder.exists()
    with pytest.raises(ServerError, match="Milvus"):
        first.corpus.index.search(np.ones((1, DIM), np.float32), 9)
    with pytest.raises(BundleError, match="no such collection"):
        store.load(names[0], IDENTITY)


IDENTITY = Identity(embedder="e" * 64, tokenizer="f" * 64, dim=DIM)


def test_bundles_of_one_catalogue_share_a_collection_until_the_last_one_goes(
    milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any, judged_file: Path
) -> None:
    """Measuring a bundle anew embeds nothing and writes nothing to Milvus."""
    settings = milvus.model_copy(update={"keep": 1})
    first = build_bundle(catalogue, fake, index=settings).manifest
    embedded(fake)
    measured = build_bundle(catalogue, fake, index=settings, queries=judged_file)
    assert measured.manifest.collection == first.collection
    assert embedded(fake) == 3  # the requests
    forced = [build_bundle(catalogue, fake, index=settings, force=True).manifest.collection for _ in range(2)]
    assert first.collection not in forced
    assert collections(store) == sorted(each.name for each in forced if each)


def test_what_a_killed_build_left_in_milvus_is_gone_on_with(
    milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any
) -> None:
    """Right entries stay, wrong ones are replaced, strangers go."""
    built = build_bundle(catalogue, fake, index=milvus).manifest.collection
    assert built is not None
    left = open_bundle(milvus.bundles, index=milvus).corpus.index
    left.delete(["img", "bare"])
    ones = np.ones((2, DIM), np.float32)
    left.upsert(Entries({"git": Mark(2, "", "old"), "stranger": Mark(9, "", "x")}, ones))
    unpublish(milvus, store)
    embedded(fake)
    assert build_bundle(catalogue, fake, index=milvus).manifest.collection == built
    assert embedded(fake) == 3
    corpus = open_bundle(milvus.bundles, index=milvus).corpus
    assert corpus.index.marks() == corpus.skills.marks()


def test_what_was_embedded_before_a_kill_is_not_embedded_again(
    milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
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
    assert embedded(fake) == 4
    fake.infer = infer
    build_bundle(catalogue, fake, index=milvus)
    assert embedded(fake) == 1
    corpus = open_bundle(milvus.bundles, index=milvus).corpus
    assert corpus.index.marks() == corpus.skills.marks()


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_what_fails_after_current_changed_leaves_the_new_bundle_live_and_whole(
    failure: BaseException,
    index: IndexSettings,
    store: MilvusStore,
    catalogue: Path,
    fake: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The folder is flushed after the rename: that may fail, or be when Ctrl-C comes."""
    before = build_bundle(catalogue, fake, index=index).manifest
    line, real = (index.bundles / "CURRENT").read_text(), os.fsync
    append(catalogue, {"id": "new", "name": "cloud"})

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


def test_two_folders_with_one_catalogue_have_collections_of_their_own(
    milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any, tmp_path: Path
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
        append(catalogue, {"id": f"new{i}", "name": "cloud"})
        build_bundle(catalogue, fake, index=other)
    assert second.name not in collections(store)
    assert len(open_bundle(milvus.bundles, index=milvus).corpus.index) == 5


def test_an_alias_that_others_use_is_left_alone_unless_forced(
    milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any
) -> None:
    store.create("theirs", IDENTITY)
    store.connection.call("create_alias", "theirs", "skills")
    with pytest.raises(BundleError, match="collection `theirs`") as caught:
        build_bundle(catalogue, fake, index=milvus)
    assert "--alias" in caught.value.fix
    assert not fake.calls
    assert (store.aliased("skills"), collections(store)) == ("theirs", ["theirs"])
    assert not list(milvus.bundles.glob("[!.]*"))
    with pytest.raises(ConfigError, match="--alias"):
        build_bundle(catalogue, fake, index=milvus.model_copy(update={"alias": "theirs"}))
    forced = build_bundle(catalogue, fake, index=milvus, force=True).manifest.collection
    assert forced is not None
    assert store.aliased("skills") == forced.name
    assert "theirs" in collections(store)


def test_a_kill_between_alias_and_current_is_made_good_by_the_same_build(
    milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any
) -> None:
    """The alias is ahead then; a build of something else does not take that for its own doing."""
    build_bundle(catalogue, fake, index=milvus)
    current = milvus.bundles / "CURRENT"
    before = current.read_text()
    append(catalogue, {"id": "new", "name": "cloud"})
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
    milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any, new_fake: Any
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
    assert collections(store) == [live.collection.name] == [store.aliased("skills")]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_refused_build_leaves_what_another_one_of_its_catalogue_published(
    *, replaced: bool, milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any, new_fake: Any
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
    assert len(collections(store)) == 1 + replaced


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


def test_a_bundle_in_milvus_needs_an_address_and_somebody_there(
    milvus: IndexSettings, catalogue: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_bundle(catalogue, fake, index=milvus)
    with pytest.raises(ConfigError, match="--uri"):
        open_bundle(milvus.bundles)
    monkeypatch.setenv("SKILLSERVE_INDEX_TOKEN", TOKEN)
    absent = milvus.model_copy(update={"uri": "http://127.0.0.1:1", "milvus_timeout_s": 1.0})
    for attempt in (
        lambda: open_bundle(milvus.bundles, index=absent),
        lambda: build_bundle(catalogue, fake, index=absent),
    ):
        with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1") as caught:
            attempt()
        assert "SKILLSERVE_INDEX_TOKEN" in caught.value.fix
        assert TOKEN.split(":")[1] not in str(caught.value)


def test_a_milvus_that_goes_away_between_searches_is_told(
    milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any
) -> None:
    collection = build_bundle(catalogue, fake, index=milvus).manifest.collection
    assert collection is not None
    searcher = Searcher(open_bundle(milvus.bundles, index=milvus), fake)
    assert searcher.search("merge pdf").hits
    store.drop(collection.name)
    with pytest.raises(SkillserveError, match="Milvus"):
        searcher.search("merge pdf")


def test_a_milvus_that_answers_too_late_is_told(
    milvus: IndexSettings, catalogue: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyMilvus hands gRPC's own error through here."""
    from milvus_lite.engine.collection import Collection as LiteCollection

    build_bundle(catalogue, fake, index=milvus)
    bundle = open_bundle(milvus.bundles, index=milvus)
    bundle.corpus.index._connection._timeout_s = 0.2  # type: ignore[attr-defined]
    quick = LiteCollection.search
    monkeypatch.setattr(LiteCollection, "search", lambda *given, **named: time.sleep(1) or quick(*given, **named))
    with pytest.raises(DeadlineExceeded, match="--milvus-timeout-s"):
        Searcher(bundle, fake).search("merge pdf")


def test_the_token_is_on_no_disk_and_an_address_may_not_hold_one(
    milvus: IndexSettings, catalogue: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKILLSERVE_INDEX_TOKEN", TOKEN)
    build_bundle(catalogue, fake, index=milvus)
    files = [path.read_bytes() for path in milvus.bundles.rglob("*") if path.is_file()]
    assert not any(word.encode() in content for content in files for word in TOKEN.split(":"))
    assert str(milvus.uri).encode() not in b"".join(files)
    assert "s3cret" not in load_settings(environ=dict(os.environ)).model_dump_json()
    with pytest.raises(ConfigError, match="SKILLSERVE_INDEX_TOKEN") as caught:
        open_bundle(milvus.bundles, index=milvus.model_copy(update={"uri": "http://root:word@host:19530"}))
    assert "word@" not in str(caught.value)


def test_a_message_of_milvus_that_repeats_a_secret_is_told_without_it(store: MilvusStore, uri: str) -> None:
    assert collections(store) == []
    connection = MilvusStore.connect(IndexSettings(uri=uri), {"SKILLSERVE_INDEX_TOKEN": "somebody:hidden"}).connection
    repeated = "hidden_name"  # not in the line of the call, which a traceback shows
    with pytest.raises(ServerError, match="'…_name' does not exist") as caught:
        connection.call("describe_collection", repeated)
    assert "hidden" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ServerError, match="'missing' does not exist") as caught:
        connection.call("describe_collection", "missing")
    assert caught.value.__cause__ is not None


def test_a_token_in_a_file_that_pymilvus_reads_does_not_count(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"SKILLSERVE_INDEX_TOKEN={TOKEN}\nREAD_BY_PYMILVUS=yes\n")
    code = """if True:
        import os
        from skillserve.settings import IndexSettings
        from skillserve_client.doors import drop_collection
        drop_collection("any", IndexSettings())
        print(os.environ.get("READ_BY_PYMILVUS"), os.environ.get("SKILLSERVE_INDEX_TOKEN"))
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SKILLSERVE_")}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["yes", "None"]


def test_without_pymilvus_the_extra_is_named(
    milvus: IndexSettings, catalogue: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "skillserve_client.milvus")
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(MissingExtraError, match=r"skillserve\[milvus\]"):
        build_bundle(catalogue, fake, index=milvus)
    build_bundle(catalogue, fake, index=milvus.model_copy(update={"kind": "faiss"}))


def test_a_bundle_moves_from_faiss_to_milvus_and_back(
    world: IndexSettings, milvus: IndexSettings, store: MilvusStore, catalogue: Path, fake: Any
) -> None:
    """Another kind is another bundle, and vectors travel instead of being made again."""
    for settings in (world, milvus, milvus.model_copy(update={"kind": "faiss", "keep": 1}), world):
        assert not build_bundle(catalogue, fake, index=settings, force=settings is world and bool(fake.calls)).current
        assert hits(settings.model_copy(update={"uri": milvus.uri}), fake, "merge pdf")[0][0] == "pdf"
    assert len(collections(store)) <= 1


def test_bundles_from_before_there_was_a_choice_are_read(world: IndexSettings, catalogue: Path, fake: Any) -> None:
    """Their manifests name no collection, their tables have no digests: they answer, and are embedded anew once."""
    build_bundle(catalogue, fake, index=world)
    before, folder = hits(world, fake, "merge pdf"), open_bundle(world.bundles).folder
    table = pq.read_table(folder / "skills.parquet").drop_columns(["digest"])
    pq.write_table(table, folder / "skills.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["collection"]
    content = (folder / "skills.parquet").read_bytes()
    manifest["files"]["skills.parquet"] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sealed = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (world.bundles / "CURRENT").write_text(f"{folder.name} {sealed}\n")
    assert hits(world, fake, "merge pdf") == before
    append(catalogue, {"id": "new", "name": "cloud"})
    embedded(fake)
    build_bundle(catalogue, fake, index=world)
    assert embedded(fake) == 6


@pytest.mark.parametrize("search", [{}, {"lexical_weight": 0.3}, {"part_weight": 1.0}])
def test_a_search_within_a_namespace_is_the_whole_one_without_the_others(
    search: dict[str, float], index: IndexSettings, catalogue: Path, fake: Any
) -> None:
    """Only skills of the namespace are found, scored as in the whole catalogue, and reranked."""
    append(catalogue, *({"id": f"a{i}", "name": "pdf", "body": "table " * i, "namespace": "acme"} for i in range(3)))
    build_bundle(catalogue, fake, index=index.model_copy(update={"lexical_weight": 0.3}))
    wanted = {"lexical_weight": 0, "rerank_depth": 0} | search
    everything = hits(index, fake, "merge pdf", top_k=8, **wanted)
    assert len(everything) == 8
    acme = [found for found in everything if found[0] in {"pdf", "a0", "a1", "a2"}]
    assert hits(index, fake, "merge pdf", top_k=8, namespace="acme", **wanted) == acme
    fake.calls.clear()
    assert len(hits(index, fake, "merge pdf", top_k=3, namespace="acme", **(wanted | {"rerank_depth": 20}))) == 3
    assert [len(sequences) for role, sequences, _ in fake.calls if role == "reranker"] == [4]
    with pytest.raises(ConfigError, match="'nobody'"):
        hits(index, fake, "merge pdf", namespace="nobody")
