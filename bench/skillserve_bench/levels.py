"""The levels at which a served line is driven: embedder alone, reranker alone, the whole search."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from skillserve.console import talk
from skillserve.errors import RepositoryError
from skillserve.settings import ClientSettings, IndexSettings, SearchSettings
from skillserve.skillfile import read_skills, split_file
from skillserve.tensors import MODEL_NAMES, Role
from skillserve_bench.load.search import SearchTarget
from skillserve_bench.load.target import InferTarget
from skillserve_bench.measurement import Contender
from skillserve_bench.server import Server, is_name_of_several
from skillserve_bench.supply import Supply, Texts, TextSupply, embedder_supply, read_texts, reranker_supply
from skillserve_client import Triton, build_bundle
from skillserve_client.doors import withdraw_collection
from skillserve_client.manifest import Collection

__all__ = ["IndexBuild", "Level", "Lines", "open_lines"]

MULTI = 20
"""Pairs that a search has reranked at once."""

Level = Literal["embedder", "reranker", "search"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexBuild:
    """A catalogue made into a bundle, once."""

    seconds: float
    num_skills: int


class Lines:
    """A server's levels, each made when it is asked for."""

    def __init__(
        self,
        server: Server,
        triton: Triton,
        *,
        repository: Path,
        data: Path,
        index: IndexSettings,
        client: ClientSettings,
        search: SearchSettings,
        seed: int,
    ) -> None:
        self._search = search
        self._server, self._triton, self._client = server, triton, client
        self._repository, self._data, self._seed = repository, data, seed
        self.index = index
        """Where the bundle is, once it is built, and its vectors, if Milvus has them."""
        self.collection: Collection | None = None
        """Of that bundle in Milvus."""
        self.texts: dict[Level, Texts] = {}
        self.supplies: dict[Role, Supply] = {}
        """By model; they know the lengths of what was sent."""

    def contender(self, level: Level) -> Contender:
        """What is driven at a level. Raises RepositoryError if the server has no such model, or another one."""
        texts = self.texts[level] = read_texts(self._data, seed=self._seed)
        if level == "search":
            search = SearchTarget(self._client, self.index, self._search)
            second: Role = "token_embedder" if self.index.token_embeddings else "reranker"
            roles: tuple[Role, ...] = ("embedder", second) if self._has_reranker() else ("embedder",)
            return self._contender(level, search, TextSupply(texts, str.encode), roles)
        folder = self._repository / MODEL_NAMES[level]
        model = self._triton.served(level)
        if level == "embedder":
            supply = embedder_supply(model, folder, texts)
        else:
            skills = read_skills(split_file(self._data, "skills", "test"))
            supply = reranker_supply(model, folder, texts, skills, seed=self._seed)
        self.supplies[level] = supply
        target = InferTarget(self._client, model)
        contender = self._contender(level, target, supply, (level,))
        longest = model.max_sequence_tokens or self._client.max_request_tokens
        budget = min(self._client.max_request_tokens, model.max_request_tokens or self._client.max_request_tokens)
        return replace(contender, multi=MULTI, bulk=max(budget // longest, 1))

    def build_index(self) -> IndexBuild:
        """Embed and index the test split's skills through the server, from nothing."""
        catalogue = split_file(self._data, "skills", "test")
        begin = time.monotonic()
        self.collection = build_bundle(catalogue, self._triton, index=self.index).manifest.collection
        return IndexBuild(seconds=time.monotonic() - begin, num_skills=len(read_skills(catalogue)))

    def _has_reranker(self) -> bool:
        try:
            self._triton.served("reranker")
        except RepositoryError:
            return False
        return True

    def _contender(
        self, name: str, target: InferTarget | SearchTarget, supply: Supply | TextSupply, roles: tuple[Role, ...]
    ) -> Contender:
        statistics = {role: partial(self._triton.statistics, role) for role in roles}
        if is_name_of_several(self._server.url):
            talk(
                f"{self._server.url} is a name of several servers: their own statistics are left out, name them by IP."
            )
            statistics = {}
        return Contender(name=name, target=target, supply=supply, server_pid=self._server.pid, statistics=statistics)


@contextmanager
def open_lines(
    server: Server,
    *,
    repository: Path,
    data: Path,
    client: ClientSettings,
    search: SearchSettings,
    seed: int,
    index: IndexSettings | None = None,
    bundles: Path | None = None,
) -> Iterator[Lines]:
    """The levels of a server; without a folder for its bundle, in one that is removed in the end.

    `index` says how the bundle is built: who keeps the vectors, and the weights of the first stage. A collection in
    Milvus goes under an alias of its own, which nobody else follows, and is removed with the folder.
    """
    client = server.reached(client)
    with ExitStack() as stack:
        index = index or IndexSettings()
        own = {
            "models": repository,
            "bundles": bundles or Path(stack.enter_context(TemporaryDirectory())) / "bundles",
            "alias": f"{index.alias}_bench_{secrets.token_hex(4)}",
        }
        lines = Lines(
            server,
            stack.enter_context(Triton(client)),
            repository=repository,
            data=data,
            index=index.model_copy(update=own),
            client=client,
            search=search,
            seed=seed,
        )
        try:
            yield lines
        finally:
            if lines.collection is not None and bundles is None:
                withdraw_collection(lines.collection, lines.index)
