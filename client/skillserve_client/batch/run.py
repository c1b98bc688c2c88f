"""Carrying out a job: shard after shard, the next one read and tokenised while this one is computed."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from skillserve.console import progress, talk
from skillserve_client.batch.ahead import running_ahead
from skillserve_client.batch.engine import Engine
from skillserve_client.batch.files import Format, shard_bytes
from skillserve_client.batch.folder import OutputFolder
from skillserve_client.batch.inputs import R
from skillserve_client.batch.jobs import Job, Refused
from skillserve_client.batch.receipts import Entry, Identity, Receipt
from skillserve_client.batch.shards import Shard, cut_shards
from skillserve_client.batch.watching import Summary, Watch
from skillserve_client.wire import ServedModel

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
    fresh: bool = False
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class _Ready(Generic[R, P]):
    """A shard that is finished, or ready for the models."""

    shard: Shard[R]
    name: str
    receipt: Receipt | None
    prepared: P | None


class Run(Generic[R, P]):
    """One job with one engine into one folder."""

    def __init__(self, job: Job[R, P], engine: Engine, spec: Spec) -> None:
        self._job: Job[R, P] = job
        self._engine, self._spec = engine, spec
        self._models: list[ServedModel] = [engine.served(role) for role in job.digests]
        self._shard_rows = spec.shard_rows or job.shard_rows
        self.identity = Identity(
            job=job.name,
            models={
                model.role: {
                    "digest": model.digest,
                    "graph_digest": model.graph_digest,
                    "precision": model.precision,
                }
                for model in self._models
            },
            options={
                **job.options,
                "engine": spec.engine_name,
                "format": spec.file_format,
                "shard_rows": self._shard_rows,
            },
        )

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
            places = folder.places()
            entries: list[Entry] = []
            with running_ahead(self._ready(folder)) as shards:
                for ready in shards:
                    receipt = ready.receipt or self._scored(folder, ready, watch)
                    changed = ready.name not in places.get(ready.shard.index, {ready.name})
                    if changed and not watch.summary.num_changed:
                        talk(f"The input changed since the last run: from row {receipt.entry.first_row} on, at least.")
                    watch.shard(receipt.entry, resumed=ready.receipt is not None, changed=changed)
                    entries.append(receipt.entry)
            folder.complete(entries)
        summary = replace(watch.summary, num_repeats=self._engine.num_repeats)
        watch.event("done", out=str(spec.out), **summary.to_dict())
        return summary

    def _ready(self, folder: OutputFolder) -> Generator[_Ready[R, P], None, None]:
        """Runs in a thread of its own."""
        for shard in cut_shards(self._job.sources, shard_rows=self._shard_rows):
            name = self.identity.shard_name(shard.index, shard.digest)
            receipt = folder.finished(name)
            prepared = None if receipt else self._job.prepare([item.record for item in shard.items])
            yield _Ready(shard, name, receipt, prepared)

    def _scored(self, folder: OutputFolder, ready: _Ready[R, P], watch: Watch) -> Receipt:
        job, shard, before = self._job, ready.shard, watch.summary.num_tokens
        if ready.prepared is None:
            raise ValueError(f"shard {ready.name} is finished and was not prepared")
        outcomes = job.score(ready.prepared, self._engine, watch.tokens)
        rows, rejects = [], list(shard.rejects)
        for item, outcome in zip(shard.items, outcomes, strict=True):
            if isinstance(outcome, Refused):
                rejects.append(item.reject(outcome.reason))
            else:
                rows.append({"row": item.row, **outcome})
        for model in self._models:
            self._engine.require_same(model)
        content = shard_bytes(
            rows,
            self._spec.file_format,
            job=job.name,
            dim=job.dim,
            metadata={
                "name": ready.name,
                "identity": self.identity.model_dump(mode="json"),
                "identity_digest": self.identity.digest,
                "input_digest": shard.digest,
                "first_row": shard.first_row,
                "num_rows": shard.num_rows,
            },
        )
        return folder.commit(
            ready.name,
            content,
            self._spec.file_format,
            input_digest=shard.digest,
            first_row=shard.first_row,
            num_rows=shard.num_rows,
            num_tokens=watch.summary.num_tokens - before,
            rejects=sorted(rejects, key=lambda reject: reject.row),
        )
