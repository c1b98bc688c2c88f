"""A Milvus that is absent, late or gone is told, and the secrets that open it are told nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skillserve.config import load_settings
from skillserve.errors import (
    ConfigError,
    DeadlineExceeded,
    MissingExtraError,
    ServerError,
    ServerUnreachable,
    SkillserveError,
)
from skillserve.settings import IndexSettings
from skillserve_client import Searcher, build_bundle, open_bundle
from skillserve_client.milvus import MilvusStore

TOKEN = "root:s3cret-of-nobody"  # noqa: S105


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


def test_a_message_of_milvus_that_repeats_a_secret_is_told_without_it(
    uri: str, collections: Callable[[], list[str]]
) -> None:
    assert collections() == []
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
