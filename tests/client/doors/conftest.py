"""One Milvus Lite for the tests of both doors, and what they look at: collections, embedded sequences, hits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skillserve.settings import IndexSettings, SearchSettings
from skillserve_client import Searcher, open_bundle
from skillserve_client.milvus import MilvusStore


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One Milvus Lite for this folder; tests clear away what they put there."""
    return str(tmp_path_factory.mktemp("milvus") / "lite.db")


@pytest.fixture
def store(uri: str) -> Iterator[MilvusStore]:
    """A look of one's own into that Milvus."""
    store = MilvusStore.connect(IndexSettings(uri=uri), {})
    yield store
    for name in store.connection.call("list_collections"):
        store.drop(name)
    if "skills" in store.connection.call("list_aliases")["aliases"]:
        store.connection.call("drop_alias", "skills")
    store.close()


@pytest.fixture
def collections(store: MilvusStore) -> Callable[[], list[str]]:
    """Names of the collections by now, sorted."""
    return lambda: sorted(store.connection.call("list_collections"))


@pytest.fixture
def milvus(world: IndexSettings, uri: str, collections: Callable[[], list[str]]) -> IndexSettings:
    """Settings of a bundle in Milvus."""
    assert not collections()
    return world.model_copy(update={"kind": "milvus", "uri": uri, "alias": "skills"})


@pytest.fixture(params=["faiss", "milvus"])
def index(request: pytest.FixtureRequest, world: IndexSettings) -> IndexSettings:
    """Settings of either kind."""
    settings: IndexSettings = world if request.param == "faiss" else request.getfixturevalue("milvus")
    return settings


@pytest.fixture
def append(catalogue: Path) -> Callable[..., None]:
    """Add skills to the catalogue."""

    def add(*rows: dict[str, str]) -> None:
        catalogue.write_text(catalogue.read_text() + "".join(json.dumps(row) + "\n" for row in rows))

    return add


@pytest.fixture
def embedded(fake: Any) -> Callable[[], int]:
    """Count the sequences that the embedder was sent since the last look."""

    def count() -> int:
        num = sum(len(sequences) for role, sequences, _ in fake.calls if role == "embedder")
        fake.calls.clear()
        return num

    return count


@pytest.fixture
def hits(fake: Any) -> Callable[..., list[tuple[str, float]]]:
    """Search the live bundle: ids and similarities."""

    def search(settings: IndexSettings, query: str, **wanted: Any) -> list[tuple[str, float]]:
        searcher = Searcher(open_bundle(settings.bundles, index=settings), fake, SearchSettings(**wanted))
        return [(hit.skill_id, hit.similarity) for hit in searcher.search(query).hits]

    return search
