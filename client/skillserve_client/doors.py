"""Who keeps a bundle's vectors: FAISS in the bundle, or Milvus, whose door is imported when a bundle names it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from skillserve.config import ENV_PREFIX
from skillserve.console import talk
from skillserve.errors import ConfigError, SkillserveError
from skillserve.lazy import load_target
from skillserve.settings import IndexSettings
from skillserve_client.index import FlatIndex
from skillserve_client.manifest import Collection
from skillserve_client.vectors import Identity, VectorIndex

if TYPE_CHECKING:
    from skillserve_client.milvus import MilvusStore

__all__ = ["Draft", "drafted", "drop_collection", "open_collection", "require_shared", "withdraw_collection"]


_LOCAL = ".db"
"""How an address ends that is a file of Milvus Lite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An index to be filled and then published."""

    index: VectorIndex
    collection: Collection | None = None
    """Where it is, for the manifest; None if it is a file of the bundle."""
    switched: Callable[[], AbstractContextManager[None]] = nullcontext
    """What goes around the moment in which CURRENT changes: it comes true with it, or is taken back."""


@contextmanager
def drafted(
    settings: IndexSettings,
    identity: Identity,
    *,
    state: str,
    over: Collection | None,
    in_use: Callable[[], AbstractContextManager[frozenset[str]]],
    force: bool,
) -> Iterator[Draft]:
    """An index for a new bundle, empty or with what a killed run left of it; if the block fails, it goes.

    `state` is the digest of what it is to hold, `over` the live bundle's collection, `in_use` see
    `MilvusStore.drafted`. Raises ConfigError, BundleError for an alias that others use, ServerUnreachable and
    MissingExtraError, all before anything is written to Milvus.
    """
    if settings.kind == "faiss":
        yield Draft(index=FlatIndex(identity.dim))
        return
    store = _store(settings)
    alias, name = settings.alias, f"{settings.alias}_{state[:16]}"
    before = over.name if over is not None and over.alias == alias else None
    try:
        store.require_alias(alias, over=before, to=name, force=force)
        with store.drafted(name, identity, in_use):
            yield Draft(
                index=store.index(name, identity),
                collection=Collection(alias=alias, name=name),
                switched=partial(store.pointed, alias, over=before, to=name, force=force),
            )
    finally:
        store.close()


def open_collection(collection: Collection, identity: Identity, settings: IndexSettings | None) -> VectorIndex:
    """The index of a published bundle in Milvus.

    Raises ConfigError without an address, MissingExtraError, ServerError, and BundleError for a collection that is not
    there or of another model.
    """
    store = _store(settings or IndexSettings())
    try:
        store.load(collection.name, identity)
    except BaseException:
        store.close()
        raise
    return store.index(collection.name, identity, published=True)


def require_shared(collection: Collection | None, settings: IndexSettings) -> None:
    """Refuse an index that this process alone could open where others are to open it, too; raises ConfigError."""
    if collection is None or not (settings.uri or "").endswith(_LOCAL):
        return
    raise ConfigError(
        "setting index.uri with --engine ray",
        got=f"`{settings.uri}`, a local file of Milvus Lite, which one process at a time may hold",
        wanted="an index that every worker can open",
        fix="Take --engine direct or --engine server, or build the bundle for a Milvus that runs by itself "
        "(--uri http://host:19530) or for FAISS: skillserve index CATALOGUE --kind faiss",
    )


def drop_collection(name: str, settings: IndexSettings) -> None:
    """Remove a collection that no bundle needs any more; where that fails, it is only told."""
    try:
        store = _store(settings)
        try:
            store.drop(name)
        finally:
            store.close()
    except SkillserveError as error:
        talk(f"The collection {name} of a removed bundle stays in Milvus: {error.got} ({error.subject}).")


def withdraw_collection(collection: Collection, settings: IndexSettings) -> None:
    """Remove a collection together with its alias, such as a measurement's own; where that fails, it is only told."""
    try:
        store = _store(settings)
        try:
            store.withdraw(collection.alias, collection.name)
        finally:
            store.close()
    except SkillserveError as error:
        talk(f"The collection {collection.name} stays in Milvus: {error.got} ({error.subject}).")


def _store(settings: IndexSettings) -> MilvusStore:
    before = set(os.environ)
    connect = load_target("skillserve_client.milvus:MilvusStore", extra="milvus", subject="an index in Milvus").connect
    # pymilvus reads a .env file into the environment when it is imported, and would so bring a token of its own.
    for name in set(os.environ) - before:
        if name.startswith(ENV_PREFIX):
            del os.environ[name]
    store: MilvusStore = connect(settings)
    return store
