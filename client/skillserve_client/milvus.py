"""The one door to Milvus: connections and what may fail in them, collections, and the alias.

A collection belongs to one state of a catalogue and is filled before anybody is told of it. Local files (`*.db`) are
Milvus Lite, which lives in the process that opened it and is held by no other one.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import grpc  # type: ignore[import-untyped]  # ships no type information
from pymilvus import DataType, MilvusClient, MilvusException

from skillserve.config import INDEX_TOKEN_VARIABLE
from skillserve.console import talk
from skillserve.errors import (
    BundleError,
    ConfigError,
    DeadlineExceeded,
    ServerError,
    ServerUnreachable,
    SkillserveError,
)
from skillserve.settings import IndexSettings
from skillserve_client.milvus_index import VECTOR, MilvusIndex
from skillserve_client.vectors import Identity

__all__ = ["MilvusStore"]

_MOST_CHARACTERS = 65_535
"""Milvus's own bound on text."""
_KINDS: dict[object, type[ServerError]] = {
    2: ServerUnreachable,  # Milvus's own code of a lost connection
    "UNAVAILABLE": ServerUnreachable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
}
"""By pymilvus's code or gRPC's status; the rest are plain server errors."""


class _Connection:
    """A client of one server that speaks our errors, and never says the token."""

    def __init__(self, uri: str, *, token: str, timeout_s: float) -> None:
        self.uri = uri
        # Of `user:password` either half may come back in a message.
        self._secrets = [word for word in (token, *token.split(":", 1)) if word]
        self._timeout_s = timeout_s
        # pymilvus logs every refusal with a traceback to stderr, by a handler of its own; here each becomes an error.
        logging.getLogger("pymilvus.decorators").setLevel(logging.CRITICAL)
        with self._translated("connecting"):
            self._client = MilvusClient(uri=uri, token=token, timeout=timeout_s)

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 -- pymilvus has no usable types
        """A method of the client; raises ServerError."""
        with self._translated(method):
            return getattr(self._client, method)(*arguments, timeout=self._timeout_s, **named)

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (MilvusException, grpc.RpcError, ValueError) as error:
            # pymilvus lets some of gRPC's errors through as they are, and others as its own with their status.
            code = getattr(error, "code", None)
            code = code() if callable(code) else code
            details = error.details() if isinstance(error, grpc.RpcError) else getattr(error, "message", error)
            message = next(iter(str(details).splitlines()), "no message")
            for secret in self._secrets:
                message = message.replace(secret, "…")
            kind = _KINDS.get(getattr(code, "name", code), ServerError)
            # A traceback shows the cause as well, with all that it says.
            shown = "".join(traceback.format_exception(error))
            cause = None if any(secret in shown for secret in self._secrets) else error
            raise (ServerUnreachable if what == "connecting" else kind)(
                f"Milvus at `{self.uri}`",
                got=f"{message} ({what})",
                wanted="a Milvus that answers in time",
                fix=f"Check that it runs, --uri, --milvus-timeout-s, and the token in {INDEX_TOKEN_VARIABLE}. "
                "A local *.db is held by one process at a time and needs milvus-lite.",
            ) from cause


class MilvusStore:
    """The collections of one server."""

    def __init__(self, connection: _Connection) -> None:
        self.connection = connection

    @classmethod
    def connect(cls, settings: IndexSettings, environ: Mapping[str, str] | None = None) -> Self:
        """Connect as settings say, with the token of the environment; raises ConfigError or ServerUnreachable."""
        if settings.uri is None:
            raise ConfigError(
                "setting index.uri",
                got="nothing",
                wanted="the address of the Milvus that holds the vectors",
                fix="Name it: --uri http://host:19530, or [index] uri in skillserve.toml.",
            )
        if "@" in settings.uri:
            # Not shown: settings are written down, and this one may end in a report or a log.
            raise ConfigError(
                "setting index.uri",
                got="an address with somebody's name or password in it",
                wanted="the address alone",
                fix=f"Put `user:password` or the API key into {INDEX_TOKEN_VARIABLE}, and leave it out of the address.",
            )
        token = (os.environ if environ is None else environ).get(INDEX_TOKEN_VARIABLE, "")
        return cls(_Connection(settings.uri, token=token, timeout_s=settings.milvus_timeout_s))

    def close(self) -> None:
        """End the connection."""
        self.connection.close()

    def has(self, name: str) -> bool:
        """Is there a collection, or an alias, of this name?"""
        return bool(self.connection.call("has_collection", name))

    def create(self, name: str, identity: Identity) -> None:
        """An empty collection; one that was left half made by a killed run is not replaced, see `load`."""
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=_MOST_CHARACTERS)
        schema.add_field("row", DataType.INT64)
        schema.add_field("namespace", DataType.VARCHAR, max_length=_MOST_CHARACTERS)
        schema.add_field("digest", DataType.VARCHAR, max_length=64)
        schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=identity.dim)
        self.connection.call(
            "create_collection", name, schema=schema, properties=_properties(identity), consistency_level="Strong"
        )

    def load(self, name: str, identity: Identity) -> None:
        """Make a collection searchable, exhaustively; raises BundleError if it is not there, or of another model."""
        subject = f"collection `{name}` in Milvus at `{self.connection.uri}`"
        if not self.has(name):
            raise _unfit(subject, "no such collection", "the vectors of the bundle")
        described = self.connection.call("describe_collection", name)
        fields = {field["name"]: field["params"] for field in described["fields"]}
        dim = fields.get(VECTOR, {}).get("dim")
        if dim is None or int(dim) != identity.dim:
            raise _unfit(
                subject, f"vectors of {dim or 'no'} dimensions", f"{identity.dim}, as the embedder's card says"
            )
        for key, wanted in _properties(identity).items():
            found = described.get("properties", {}).get(key, "nothing")
            if found != wanted:
                raise _unfit(
                    subject, f"{key} {found[:12]}", f"{wanted[:12]}, for scores would be meaningless otherwise"
                )
        if not self.connection.call("list_indexes", name):
            parameters = MilvusClient.prepare_index_params()
            parameters.add_index(VECTOR, index_type="FLAT", metric_type="IP")
            self.connection.call("create_index", name, parameters)
        self.connection.call("load_collection", name)

    def index(self, name: str, identity: Identity, *, published: bool = False) -> MilvusIndex:
        """A loaded collection as an index; what was published no longer changes, so its readers wait for nobody."""
        return MilvusIndex(self.connection, name, dim=identity.dim, consistency="Bounded" if published else "Strong")

    @contextmanager
    def drafted(
        self, name: str, identity: Identity, in_use: Callable[[], AbstractContextManager[frozenset[str]]]
    ) -> Iterator[None]:
        """A collection to be filled in the block; if that fails, it goes, unless it is in use by then.

        `in_use` gives the collections that bundles need, and lets nobody publish meanwhile: another run of the same
        catalogue may have found this collection, and published it. One that stands already, such as what a killed run
        left, is gone on with, and stays.
        """
        ours = not self.has(name)
        try:
            if ours:
                self.create(name, identity)
            self.load(name, identity)
            yield
        except BaseException:
            if ours:
                self._discard(name, in_use)
            raise

    def _discard(self, name: str, in_use: Callable[[], AbstractContextManager[frozenset[str]]]) -> None:
        try:
            with in_use() as needed:
                if name not in needed and self.has(name) and not self.connection.call("list_aliases", name)["aliases"]:
                    self.drop(name)
        except (SkillserveError, OSError) as error:
            talk(f"The collection {name} of the failed build stays in Milvus: {error}")

    def drop(self, name: str) -> None:
        """Remove a collection; one that resists is only told."""
        try:
            self.connection.call("drop_collection", name)
        except SkillserveError as error:
            talk(f"The collection {name} could not be removed from Milvus: {error.got}.")

    def withdraw(self, alias: str, name: str) -> None:
        """Remove a collection and the alias that names it; raises ServerError for the alias."""
        if self.aliased(alias) == name:
            self.connection.call("drop_alias", alias)
        self.drop(name)

    def aliased(self, alias: str) -> str | None:
        """The collection that an alias names; raises ConfigError where a collection itself is called so."""
        if alias in self.connection.call("list_aliases")["aliases"]:
            return str(self.connection.call("describe_alias", alias)["collection_name"])
        if self.has(alias):
            raise ConfigError(
                f"alias `{alias}` in Milvus at `{self.connection.uri}`",
                got="a collection of that name",
                wanted="a name that is free, or an alias",
                fix="Choose another one: --alias NAME",
            )
        return None

    def require_alias(self, alias: str, *, over: str | None, to: str, force: bool) -> str | None:
        """The collection that the alias names now; BundleError if that is neither `over` nor `to`, unless forced."""
        now = self.aliased(alias)
        if now not in {None, over, to} and not force:
            raise BundleError(
                f"alias `{alias}` in Milvus at `{self.connection.uri}`",
                got=f"one of collection `{now}`",
                wanted=f"`{over}`, the live bundle's"
                if over
                else "none, since the live bundle has no collection of it",
                fix="Nothing was published. Choose another one: --alias NAME; or with --force it is moved.",
            )
        return now

    @contextmanager
    def pointed(self, alias: str, *, over: str | None, to: str, force: bool) -> Iterator[None]:
        """Move the alias, and move it back if the block fails; see `require_alias`."""
        now = self.require_alias(alias, over=over, to=to, force=force)
        self._point(alias, now, to)
        try:
            yield
        except BaseException:
            try:
                self._point(alias, to, now)
            except SkillserveError as error:
                talk(f"The alias {alias} still names {to}, and should {now or 'be none'}: {error.got}.")
            raise

    def _point(self, alias: str, now: str | None, to: str | None) -> None:
        if to is None:
            self.connection.call("drop_alias", alias)
        elif now != to:
            self.connection.call("alter_alias" if now else "create_alias", to, alias)


def _properties(identity: Identity) -> dict[str, str]:
    """As a collection keeps an identity; the dimension is part of its schema."""
    return {"skillserve.embedder": identity.embedder, "skillserve.tokenizer": identity.tokenizer}


def _unfit(subject: str, got: str, wanted: str) -> BundleError:
    return BundleError(
        subject,
        got=got,
        wanted=wanted,
        fix="Check --uri, or build the bundle again: skillserve index CATALOGUE --force",
    )
