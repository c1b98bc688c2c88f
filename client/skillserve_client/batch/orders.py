"""What a run is to do, in a form that travels: whoever gets an order opens the models it needs and has the job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from skillserve.settings import Settings
from skillserve.settings.section import Section
from skillserve.tensors import Role
from skillserve_client.batch.direct import DirectInference, ModelsOfRepository
from skillserve_client.batch.embed import EmbedJob
from skillserve_client.batch.engine import Engine
from skillserve_client.batch.jobs import Job
from skillserve_client.batch.pairs import PairsJob
from skillserve_client.batch.rank import RankJob
from skillserve_client.bundle import Bundle, open_bundle, read_pinned
from skillserve_client.doors import require_shared
from skillserve_client.models import read_sources
from skillserve_client.search import check_models
from skillserve_client.triton import Triton
from skillserve_client.wire import Describing, Inference, ServedModel

__all__ = ["Order", "opened_inference"]

S = TypeVar("S", bound=Section)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A job to do, with everything that it depends on."""

    job: Literal["embed", "rank", "pairs"]
    sources: tuple[Path, ...]
    """Read by the run alone; whoever only computes need not have them."""
    settings: Settings

    @property
    def computes_with(self) -> Literal["server", "direct"]:
        """What makes the numbers, wherever the work is done."""
        score = self.settings.score
        return score.worker_engine if score.engine == "ray" else score.engine

    def with_whole_paths(self) -> Self:
        """The same for a process that runs in another folder."""
        index, client = _with_whole_paths(self.settings.index), _with_whole_paths(self.settings.client)
        return replace(self, settings=self.settings.model_copy(update={"index": index, "client": client}))

    def described(self) -> tuple[Self, Job[Any, Any], Mapping[Role, ServedModel]]:
        """The order for others, the job, and the models it will meet; nothing is left open.

        In the order for others the bundle is the version that is live now, whatever CURRENT says when they open it.
        Raises BundleError, RepositoryError, ServerError, and ConfigError for an index that others could not open.
        """
        if self.job != "embed":
            index = self.settings.index
            require_shared(read_pinned(index.bundles)[1].collection, index)
        make, roles, bundle = self._plan()
        order = self._with_index(bundles=bundle.folder) if bundle else self
        if self.computes_with == "direct":
            models = ModelsOfRepository(self.settings.index.models, roles)
            return order, make(models), {role: models.served(role) for role in roles}
        with Triton(self.settings.client) as triton:
            return order, make(triton), {role: triton.served(role) for role in roles}

    @contextmanager
    def opened(self, *, num_threads: int | None = None) -> Iterator[tuple[Job[Any, Any], Engine]]:
        """The job and what computes it, here; `num_threads` are those of a graph in this process.

        Raises what `described` raises, and MissingExtraError without ONNX Runtime.
        """
        client, direct = self.settings.client, self.computes_with == "direct"
        make, roles, _ = self._plan()
        with (
            opened_inference(self.settings, self.computes_with, roles, num_threads=num_threads) as inference,
            Engine(
                inference,
                num_workers=1 if direct else client.num_in_flight,
                max_run_tokens=client.max_request_tokens,
                patience_s=self.settings.score.patience_s,
                timeout_s=None if direct else client.timeout_s,
            ) as engine,
        ):
            yield make(inference), engine

    def _with_index(self, **paths: Path) -> Self:
        index = self.settings.index.model_copy(update=paths)
        return replace(self, settings=self.settings.model_copy(update={"index": index}))

    def _plan(self) -> tuple[Callable[[Describing], Job[Any, Any]], tuple[Role, ...], Bundle | None]:
        """How the job is made when its models are known, which these are, and the bundle if it needs one."""
        settings = self.settings
        if self.job == "embed":
            roles: tuple[Role, ...] = ("embedder",)
            return (
                lambda models: EmbedJob.of(
                    self.sources, read_sources(settings.index.models, models, roles=roles)["embedder"]
                ),
                roles,
                None,
            )
        bundle = open_bundle(settings.index.bundles, index=settings.index)
        kind = RankJob if self.job == "rank" else PairsJob
        job = kind.of(self.sources, bundle, settings.search)

        def checked(models: Describing) -> Job[Any, Any]:
            check_models(bundle, {role: models.served(role) for role in job.digests})
            return job

        return checked, tuple(job.digests), bundle


def _with_whole_paths(section: S) -> S:
    """Every path of a section, those to come included, so that none is left out."""
    return section.model_copy(update={name: value.absolute() for name, value in section if isinstance(value, Path)})


@contextmanager
def opened_inference(
    settings: Settings, engine: Literal["server", "direct"], roles: Sequence[Role], *, num_threads: int | None = None
) -> Iterator[Inference]:
    """Models to compute with: a connection, or graphs in this process."""
    if engine == "direct":
        yield DirectInference(
            settings.index.models,
            roles,
            max_request_tokens=settings.client.max_request_tokens,
            num_threads=num_threads,
        )
        return
    with Triton(settings.client) as triton:
        yield triton
