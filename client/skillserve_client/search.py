"""Searchers: they open a bundle, check that the server runs its models, and carry out search plans."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from skillserve.errors import BundleError, ConfigError, SkillserveError
from skillserve.records import Answer
from skillserve.settings import ClientSettings, IndexSettings, SearchSettings
from skillserve.tensors import Role
from skillserve_client.bundle import Bundle, open_bundle
from skillserve_client.plan import FAILURES, Step, choose_depth, plan_search, proceed
from skillserve_client.triton import AsyncTriton, Triton
from skillserve_client.wire import AsyncInference, Floats, Inference, ServedModel

__all__ = ["AsyncSearcher", "Searcher", "check_models"]


def check_models(bundle: Bundle, served: Mapping[Role, ServedModel]) -> None:
    """Refuse a server that runs other models than those the bundle was built with; raises BundleError."""
    for role, model in served.items():
        wanted = bundle.serving[role]
        if model.digest != wanted:
            raise BundleError(
                f"bundle {bundle.version}, built with {role} {wanted[:12]}",
                got=f"a server that runs {role} {model.digest[:12]}",
                wanted="the same model, for scores would be meaningless otherwise",
                fix="Serve that model, or build the bundle again: skillserve index CATALOGUE",
            )
        if role == "embedder" and model.dim != bundle.manifest.dim:
            raise BundleError(
                f"bundle {bundle.version}, whose vectors have {bundle.manifest.dim} dimensions",
                got=f"a server whose embeddings have {model.dim}",
                wanted="the same number",
                fix="Export the model again and restart the server: skillserve export WEIGHTS",
            )
        if role == "token_embedder" and bundle.corpus.tokens is not None:
            kept = bundle.corpus.tokens
            if (model.dim, model.interaction) != (kept.dim, kept.how):
                raise BundleError(
                    f"bundle {bundle.version}, whose token embeddings have {kept.dim} dimensions, with {kept.how}",
                    got=f"a server whose token embeddings have {model.dim}, with {model.interaction}",
                    wanted="the same",
                    fix="Export the model again and restart the server: skillserve export WEIGHTS",
                )


class _Search:
    """What both searchers know: the bundle, the settings, and which models they may call."""

    def __init__(self, bundle: Bundle, settings: SearchSettings | None) -> None:
        self.bundle = bundle
        self.settings = settings or SearchSettings()
        depth, _ = choose_depth(bundle, self.settings.rerank_depth)
        bundle.corpus.chosen(self.settings)  # refused before anything is asked
        self._roles: tuple[Role, ...] = ("embedder", bundle.corpus.second_stage) if depth else ("embedder",)

    def _with(self, top_k: int | None, deadline_ms: float | None) -> SearchSettings:
        given = {"top_k": top_k, "deadline_ms": deadline_ms}
        changes = {name: value for name, value in given.items() if value is not None}
        for name, value in changes.items():
            if value <= 0:
                raise ConfigError(
                    f"argument {name}", got=str(value), wanted="more than 0", fix="Correct it, or leave it out."
                )
        return self.settings.model_copy(update=changes)

    def _call(self, step: Step) -> dict[str, Any]:
        """Arguments of `infer`. The digest goes along, since a server may be restarted with another model."""
        return {
            "role": step.role,
            "sequences": step.sequences,
            "timeout_s": step.timeout_s,
            "digest": self.bundle.serving[step.role],
        }


class Searcher(_Search):
    """Answers requests from one bundle through one server; safe to share between threads.

    >>> with Searcher.connect(Path("bundles")) as searcher:  # doctest: +SKIP
    ...     answer = searcher.search("turn a folder of photos into one PDF", deadline_ms=200)
    """

    def __init__(self, bundle: Bundle, triton: Inference, settings: SearchSettings | None = None) -> None:
        super().__init__(bundle, settings)
        self._triton = triton
        self._owned: Triton | None = None
        check_models(bundle, {role: triton.served(role) for role in self._roles})

    @classmethod
    def connect(
        cls,
        bundles: Path | None = None,
        *,
        client: ClientSettings | None = None,
        settings: SearchSettings | None = None,
        index: IndexSettings | None = None,
    ) -> Self:
        """Open the live bundle of a folder, and a connection; `index` says where Milvus is, if the bundle is in it.

        Raises BundleError, RepositoryError or ServerError, and ConfigError for settings that the bundle cannot serve.
        """
        index = index or IndexSettings()
        bundle = open_bundle(bundles or index.bundles, index=index)
        triton = Triton(client)
        try:
            searcher = cls(bundle, triton, settings)
        except BaseException:
            triton.close()
            raise
        searcher._owned = triton
        return searcher

    def search(self, query: str, *, top_k: int | None = None, deadline_ms: float | None = None) -> Answer:
        """The skills that fit a request, best first.

        Raises QueryError, ServerError if embedding fails, and BundleError if the server changed to another model.
        """
        plan = plan_search(self.bundle, query, self._with(top_k, deadline_ms))
        outcome: Floats | SkillserveError | None = None
        while isinstance(step := proceed(plan, outcome), Step):
            try:
                outcome = self._triton.infer(**self._call(step))
            except FAILURES as error:
                outcome = error
        return step

    def close(self) -> None:
        """End the connection that `connect` made; one that was handed over stays open."""
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncSearcher(_Search):
    """The same for asyncio; any number of searches may run at once.

    >>> async with await AsyncSearcher.connect(Path("bundles")) as searcher:  # doctest: +SKIP
    ...     answer = await searcher.search("turn a folder of photos into one PDF")
    """

    def __init__(self, bundle: Bundle, triton: AsyncInference, settings: SearchSettings | None = None) -> None:
        super().__init__(bundle, settings)
        self._triton = triton
        self._owned: AsyncTriton | None = None
        self._checked = False
        self._threads = ThreadPoolExecutor(thread_name_prefix="skillserve-search")  # they end with the searcher

    @classmethod
    async def connect(
        cls,
        bundles: Path | None = None,
        *,
        client: ClientSettings | None = None,
        settings: SearchSettings | None = None,
        index: IndexSettings | None = None,
    ) -> Self:
        """As `Searcher.connect`."""
        index = index or IndexSettings()
        bundle = open_bundle(bundles or index.bundles, index=index)
        triton = AsyncTriton(client)
        try:
            searcher = cls(bundle, triton, settings)
            searcher._owned = triton
            await searcher.check()
        except BaseException:
            await triton.close()
            raise
        return searcher

    async def check(self) -> None:
        """Check the server's models against the bundle's; the first search does it if nobody did."""
        check_models(self.bundle, {role: await self._triton.served(role) for role in self._roles})
        self._checked = True

    async def search(self, query: str, *, top_k: int | None = None, deadline_ms: float | None = None) -> Answer:
        """As `Searcher.search`."""
        if not self._checked:
            await self.check()
        plan = plan_search(self.bundle, query, self._with(top_k, deadline_ms), started=time.monotonic())
        outcome: Floats | SkillserveError | None = None
        # In threads, one after the other: the index, and late interaction, compute for milliseconds, in which the loop
        # has others to serve. Threads of its own, since the loop's may be busy with what has nothing to do with it.
        loop = asyncio.get_running_loop()
        while isinstance(step := await loop.run_in_executor(self._threads, proceed, plan, outcome), Step):
            try:
                outcome = await self._triton.infer(**self._call(step))
            except FAILURES as error:
                outcome = error
        return step

    async def close(self) -> None:
        """As `Searcher.close`."""
        if self._owned is not None:
            await self._owned.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
