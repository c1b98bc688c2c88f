"""The ways in which a catalogue is embedded: each gives a function that does it once and says how fast.

The bare graph on token ids that were made beforehand is the measure; a whole job (files in, shards out) in this
process, through the server, and by Ray's workers; and two that people would otherwise write.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from skillserve.errors import CardError, MissingExtraError
from skillserve.records import Skill
from skillserve.settings import Settings
from skillserve.tensors import Ids, token_budget_batches
from skillserve_bench.inprocess import LocalEmbedder
from skillserve_bench.peers.sentence_transformers import SentenceTransformersPeer
from skillserve_client import Triton
from skillserve_client.batch.crew import Alone, Crew
from skillserve_client.batch.jobs import Job
from skillserve_client.batch.orders import Order
from skillserve_client.batch.run import Run, Spec
from skillserve_client.batch.workers import Workers
from skillserve_client.wire import Floats

__all__ = ["DIRECT", "ONE_BY_ONE", "RAW", "RAY", "SERVED", "TRANSFORMERS", "Pass", "Way", "ways"]

RAW, DIRECT, SERVED = "the bare graph", "score --engine direct", "score --engine server"
RAY = "score --engine ray"
ONE_BY_ONE = "the client, request by request"
TRANSFORMERS = "sentence-transformers' encode"


@dataclass(frozen=True, slots=True)
class Pass:
    """The catalogue once."""

    per_s: float
    vectors: Floats


Way = Callable[[int], Pass]
"""Embeds the catalogue; the argument is the number of the round."""


def ways(
    held: ExitStack,
    triton: Triton,
    *,
    catalogue: Path,
    skills: Sequence[Skill],
    sequences: Sequence[Ids],
    settings: Settings,
    weights: Path | None,
    scratch: Path,
) -> tuple[dict[str, Way], dict[str, str]]:
    """All ways that are open here, and of the others why not.

    What jobs open is `held` open for all rounds. `settings` name the repository (`index.models`) and the server;
    `sequences` are the skills as the model reads them. Raises CardError if the weights are not those that are served,
    RepositoryError.
    """
    repository, max_tokens = settings.index.models, settings.client.max_request_tokens
    raw = LocalEmbedder(repository)
    found: dict[str, Way] = {
        RAW: lambda _number: _bare(raw, sequences, max_tokens),
        DIRECT: _job(held, "direct", catalogue, settings, scratch),
        SERVED: _job(held, "server", catalogue, settings, scratch),
        ONE_BY_ONE: lambda _number: _timed(
            len(sequences), lambda: np.concatenate([triton.infer("embedder", [each]) for each in sequences])
        ),
    }
    absent: dict[str, str] = {}
    try:
        found[RAY] = _by_ray(catalogue, settings, scratch)
    except MissingExtraError as error:
        absent[RAY] = error.got
    if weights is None:
        absent[TRANSFORMERS] = "no --weights"
        return found, absent
    try:
        peer = SentenceTransformersPeer(weights)
    except MissingExtraError as error:
        absent[TRANSFORMERS] = error.got
        return found, absent
    if peer.card.digest != raw.model.digest:
        raise CardError(
            f"weights `{weights}`",
            got=f"digest {peer.card.short_digest}",
            wanted=f"{raw.model.digest[:12]}, which is served",
            fix="Name the weights folder that the repository was exported from: --weights FOLDER",
        )
    found[TRANSFORMERS] = lambda _number: _timed(len(skills), lambda: peer.embed_skills(skills))
    return found, absent


def _timed(num: int, embed: Callable[[], Floats]) -> Pass:
    begin = time.perf_counter()
    vectors = embed()
    return Pass(num / (time.perf_counter() - begin), vectors)


def _bare(raw: LocalEmbedder, sequences: Sequence[Ids], max_tokens: int) -> Pass:
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    ordered = [sequences[i] for i in order]
    runs = token_budget_batches(list(map(len, ordered)), max_tokens=max_tokens)
    found = _timed(len(sequences), lambda: np.concatenate([raw.embed(ordered[run]) for run in runs]))
    vectors = np.empty_like(found.vectors)
    vectors[order] = found.vectors
    return Pass(found.per_s, vectors)


def _job(
    held: ExitStack, engine: Literal["direct", "server"], catalogue: Path, settings: Settings, scratch: Path
) -> Way:
    """The whole job in this process; opening models or a channel is no part of it."""
    job, opened = held.enter_context(_order(engine, catalogue, settings).opened())
    return lambda number: _carried_out(
        job, Alone(job, opened), Spec(out=scratch / f"{engine}{number}", engine_name=engine)
    )


def _by_ray(catalogue: Path, settings: Settings, scratch: Path) -> Way:
    """The whole job by workers of a Ray that begins and ends with it, and so with models that they open."""
    for_workers, job, models = _order("ray", catalogue, settings).described()
    crew = Workers(for_workers, models)
    return lambda number: _carried_out(
        job, crew, Spec(out=scratch / f"ray{number}", engine_name=for_workers.computes_with)
    )


def _carried_out(job: Job[Any, Any], crew: Crew[Any], spec: Spec) -> Pass:
    begin = time.perf_counter()
    summary = Run(job, crew, spec).carry_out()
    return Pass(summary.num_scored / (time.perf_counter() - begin), _vectors(spec.out))


def _order(engine: Literal["direct", "server", "ray"], catalogue: Path, settings: Settings) -> Order:
    score = settings.score.model_copy(update={"engine": engine, "worker_engine": "direct"})
    return Order(job="embed", sources=(catalogue,), settings=settings.model_copy(update={"score": score}))


def _vectors(out: Path) -> Floats:
    tables = [pq.read_table(file, columns=["row", "embedding"]) for file in sorted((out / "shards").iterdir())]
    rows = [row for table in tables for row in table["row"].to_pylist()]
    found = [vector for table in tables for vector in table["embedding"].to_pylist()]
    # In the input's order, whatever the order of the files.
    return np.array(found, np.float32)[np.argsort(rows)]
