"""Carrying out a job: what is found finished stays, the rest goes to a crew, and what comes back is written."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from skillserve.console import progress, talk
from skillserve_client.batch.crew import Crew, Found, Scored, Task
from skillserve_client.batch.files import Format
from skillserve_client.batch.folder import OutputFolder
from skillserve_client.batch.inputs import R
from skillserve_client.batch.jobs import Job
from skillserve_client.batch.receipts import Entry, Identity, Receipt
from skillserve_client.batch.shards import cut_shards
from skillserve_client.batch.watching import Summary, Watch

__all__ = ["Run", "Spec"]

P = TypeVar("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Where results go, and in what form."""

    out: Path
    file_format: Format = "parquet"
    shard_rows: int | None = None
    """None: the job's own."""
    engine_name: str
    """What computes, wherever: results of two engines differ in their last digits, and never share a folder."""
    fresh: bool = False
    as_json: bool = False


class Run(Generic[R, P]):
    """One job with one crew into one folder, which this process alone writes to."""

    def __init__(self, job: Job[R, P], crew: Crew[R], spec: Spec) -> None:
        self._job: Job[R, P] = job
        self._crew: Crew[R] = crew
        self._spec = spec
        self._shard_rows = spec.shard_rows or job.shard_rows
        models = {role: crew.served(role) for role in job.digests}
        self.identity = Identity(
            job=job.name,
            models={
                role: {
                    "digest": model.digest,
                    "graph_digest": model.graph_digest,
                    "precision": model.precision,
                }
                for role, model in models.items()
            },
            options={
                **job.options,
                "engine": spec.engine_name,
                "format": spec.file_format,
                "shard_rows": self._shard_rows,
            },
        )
        self._task = Task(self.identity, spec.file_format, models)

    def carry_out(self) -> Summary:
        """Score everything that is not scored yet.

        Raises CatalogueError for a source that no run could read, OutputError for the folder, ServerError,
        RepositoryError and BundleError for the models. Finished shards stay whatever is raised.
        """
        job, spec = self._job, self._spec
        job.sources.check()
        total = job.sources.count()
        with (
            OutputFolder.opened(spec.out, self.identity, job.sources.paths, fresh=spec.fresh) as folder,
            progress(job.name, total) as bar,
        ):
            watch = Watch(total, bar, as_json=spec.as_json)
            watch.event("start", job=job.name, total_rows=total, identity=self.identity.model_dump(mode="json"))
            entries: dict[int, Entry] = {}
            with closing(self._crew.scored(self._found(folder), self._task, watch.tokens)) as shards:
                for found, scored in shards:
                    receipt = found.receipt if scored is None else self._committed(folder, found, scored)
                    if receipt is None:
                        raise ValueError(f"shard {found.name} is neither finished nor scored")
                    watch.shard(
                        receipt.entry,
                        resumed=scored is None,
                        changed=found.changed,
                        num_repeats=scored.num_repeats if scored else 0,
                    )
                    entries[found.shard.index] = receipt.entry
            folder.complete([entries[index] for index in sorted(entries)])
        watch.event("done", out=str(spec.out), **watch.summary.to_dict())
        return watch.summary

    def _found(self, folder: OutputFolder) -> Generator[Found[R], None, None]:
        """Runs in a thread of its own."""
        places, any_changed = folder.places(), False
        for shard in cut_shards(self._job.sources, shard_rows=self._shard_rows):
            name = self.identity.shard_name(shard.index, shard.digest)
            changed = name not in places.get(shard.index, {name})
            if changed and not any_changed:
                talk(f"The input changed since the last run: from row {shard.first_row} on, at least.")
                any_changed = True
            yield Found(shard, name, folder.finished(name), changed)

    def _committed(self, folder: OutputFolder, found: Found[R], scored: Scored) -> Receipt:
        return folder.commit(
            found.name,
            scored.content,
            self._spec.file_format,
            input_digest=found.shard.digest,
            first_row=found.shard.first_row,
            num_rows=found.shard.num_rows,
            num_tokens=scored.num_tokens,
            rejects=scored.rejects,
        )
