"""Who computes shards: what they are given, what they give back, and the crew of one, in this process."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from skillserve.errors import BundleError
from skillserve.tensors import Role
from skillserve_client.batch.ahead import running_ahead
from skillserve_client.batch.engine import Engine, Tokens
from skillserve_client.batch.files import Format, shard_bytes
from skillserve_client.batch.inputs import R
from skillserve_client.batch.jobs import Job, Refused
from skillserve_client.batch.receipts import Identity, Receipt, Reject
from skillserve_client.batch.shards import Shard
from skillserve_client.wire import ServedModel

__all__ = ["Alone", "Crew", "Found", "Scored", "Task", "WorkerDied", "score_shard"]

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Found(Generic[R]):
    """A shard of the input, and whether it is finished."""

    shard: Shard[R]
    name: str
    receipt: Receipt | None
    changed: bool
    """Another shard was finished in its place before."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is the same for all shards of a run."""

    identity: Identity
    file_format: Format
    models: Mapping[Role, ServedModel]
    """As they were at the start."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A shard's results, ready to be written."""

    content: bytes
    """Of its file."""
    rejects: tuple[Reject, ...]
    """In the order of the input."""
    num_tokens: int
    num_repeats: int = 0
    """Runs of sequences that were sent again."""


class WorkerDied(Exception):
    """A shard came to no end, since the process that computed it, or the machine below it, went away; says how."""


class Crew(Protocol[R]):
    """Computes the shards of one job; reads nothing of the input and writes nothing of the output."""

    def served(self, role: Role) -> ServedModel:
        """Describe the model of a role; raises RepositoryError if there is none."""
        ...

    def scored(
        self, found: Generator[Found[R], None, None], task: Task, advance: Tokens
    ) -> Generator[tuple[Found[R], Scored | None], None, None]:
        """Every shard that is found, in whatever order, with its results; None for one that is finished already.

        `advance` hears of tokens as soon as they are computed. Raises ServerError, RepositoryError and BundleError
        for what computes. When it is closed, so is `found`.
        """
        ...


class Alone(Generic[R, P]):
    """This process: one shard at a time, the next one read and tokenised while this one is computed."""

    def __init__(self, job: Job[R, P], engine: Engine) -> None:
        self._job: Job[R, P] = job
        self._engine = engine

    def served(self, role: Role) -> ServedModel:
        """Describe the model of a role."""
        return self._engine.served(role)

    def scored(
        self, found: Generator[Found[R], None, None], task: Task, advance: Tokens
    ) -> Generator[tuple[Found[R], Scored | None], None, None]:
        """In the order of the input."""
        with running_ahead(self._prepared(found)) as shards:
            for each, prepared in shards:
                done = each.receipt is not None
                yield each, None if done else score_shard(self._job, self._engine, each, prepared, task, advance)

    def _prepared(self, found: Generator[Found[R], None, None]) -> Generator[tuple[Found[R], P | None], None, None]:
        """Runs in a thread of its own."""
        with closing(found):
            for each in found:
                yield each, None if each.receipt else self._job.prepare([item.record for item in each.shard.items])


def score_shard(
    job: Job[R, P], engine: Engine, found: Found[R], prepared: P | None, task: Task, advance: Tokens
) -> Scored:
    """Compute a shard and lay its file out; a record that nobody could answer becomes a reject.

    Without `prepared` its records are tokenised first. Raises BundleError if the job is not the run's, and
    RepositoryError if a model changed since the start.
    """
    _require_same_job(job, task.identity)
    shard, counted, before = found.shard, 0, engine.num_repeats

    def count(num: int) -> None:
        nonlocal counted
        counted += num
        advance(num)

    ready = job.prepare([item.record for item in shard.items]) if prepared is None else prepared
    rows: list[Mapping[str, Any]] = []
    rejects = list(shard.rejects)
    for item, outcome in zip(shard.items, job.score(ready, engine, count), strict=True):
        if isinstance(outcome, Refused):
            rejects.append(item.reject(outcome.reason))
        else:
            rows.append({"row": item.row, **outcome})
    for model in task.models.values():
        engine.require_same(model)
    content = shard_bytes(
        rows,
        task.file_format,
        job=job.name,
        dim=job.dim,
        metadata={
            "name": found.name,
            "identity": task.identity.model_dump(mode="json"),
            "identity_digest": task.identity.digest,
            "input_digest": shard.digest,
            "first_row": shard.first_row,
            "num_rows": shard.num_rows,
        },
    )
    return Scored(
        content=content,
        rejects=tuple(sorted(rejects, key=lambda reject: reject.row)),
        num_tokens=counted,
        num_repeats=engine.num_repeats - before,
    )


def _require_same_job(job: Job[Any, Any], identity: Identity) -> None:
    """Whoever computes has opened files of its own, such as another machine's copy of them."""
    here: dict[str, object] = {
        "job": job.name,
        **{str(role): digest for role, digest in job.digests.items()},
        **job.options,
    }
    wanted = {
        "job": identity.job,
        **{role: model["digest"] for role, model in identity.models.items()},
        **identity.options,
    }
    other = [name for name, value in here.items() if wanted.get(name) != value]
    if other:
        raise BundleError(
            f"job `{job.name}` where a shard is computed",
            got=", ".join(f"{name} {here[name]}" for name in other),
            wanted=", ".join(f"{name} {wanted.get(name)}" for name in other) + ", as at the start",
            fix="This shard was not written. Give all machines the same --bundles and --models, and run it again.",
        )
