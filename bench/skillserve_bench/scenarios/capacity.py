"""Machines, hours and memory for more skills than can be tried: from what one machine measures on a ladder of sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from skillserve.errors import ConfigError
from skillserve.machine import memory_bytes
from skillserve.settings import CapacitySettings, Settings
from skillserve_bench.capacity.embedding import Rate, bytes_a_row, find_rate, require_rate
from skillserve_bench.capacity.field import measure_field, require_kinds
from skillserve_bench.capacity.plan import EmbeddingPlan, IndexPlan, Machine, plan_embedding, plan_index
from skillserve_bench.capacity.tables import (
    cluster_table,
    embedding_table,
    growth_table,
    measured_table,
    number,
    plan_table,
    ranged,
)
from skillserve_bench.capacity.trials import MILVUS
from skillserve_bench.capacity.vectors import Source, mixture, require_room, widened, write_vectors
from skillserve_bench.figures import times
from skillserve_bench.report import Findings
from skillserve_client.batch.embed import SHARD_ROWS

__all__ = ["measure_capacity"]

_EXACT = {"flat": 0.999, MILVUS: 0.999}
"""Least recall of kinds that compare with every vector in float32; they may differ from numpy in near ties only."""


def measure_capacity(
    *, repository: Path | None, data: Path | None, bundles: Path | None, scratch: Path | None, settings: Settings
) -> Findings:
    """Measure the ladder and compute the plan.

    Raises, before anything is measured, ConfigError for settings that do not fit together or too little memory,
    OutputError for too little disk, RepositoryError and BundleError.
    """
    capacity = settings.capacity
    require_rate(repository, data, capacity.skills_per_s)
    source = _source(bundles, settings)
    require_kinds(capacity.kinds, source.dim)
    with tempfile.TemporaryDirectory(prefix="skillserve-capacity-", dir=scratch) as name:
        folder = Path(name)
        require_room(max(capacity.rows), source.dim, folder)
        rate = find_rate(repository, data, settings, folder)
        a_row = _bytes_a_row(source, folder, seed=capacity.seed)
        measured, absent = measure_field(source, capacity, folder)
    memory_gib = capacity.memory_gib or memory_bytes() / 2**30
    machine = Machine(memory_bytes=memory_gib * 2**30, share=capacity.memory_share)
    embedding = None
    if rate is not None:
        embedding = plan_embedding(
            capacity.skills,
            rate.per_s,
            hours=capacity.hours,
            shard_rows=SHARD_ROWS,
            bytes_a_row=a_row,
        )
    plans = {
        kind: plan_index(capacity.skills, each.growths, machine, other_bytes=capacity.other_bytes)
        for kind, each in measured.items()
        if kind != MILVUS  # one process, for trials
    }
    wrong = {kind: each.recalls for kind, each in measured.items() if min(each.recalls) < _EXACT.get(kind, 0.0)}
    return Findings(
        name="capacity",
        title=f"Machines, hours and memory for {capacity.skills:,} skills",
        passed=not wrong,
        summary=_summary(embedding, plans, absent, wrong, capacity, memory_gib),
        tables=[
            embedding_table(embedding, rate, capacity),
            plan_table(plans, measured, absent, capacity),
            cluster_table(plans, machine, capacity),
            measured_table(measured, capacity),
            growth_table(measured, capacity),
        ],
        method=_method(source, rate, a_row, capacity, memory_gib),
        server="no server",
        figures={
            "skills": capacity.skills,
            "dim": source.dim,
            "memory_gib": memory_gib,
            "rate": None if rate is None else asdict(rate),
            "file_bytes_a_row": a_row,
            "embedding": None if embedding is None else asdict(embedding),
            "indexes": {kind: asdict(plan) for kind, plan in plans.items()},
            "not_measured": absent,
            "measured": {kind: asdict(each) for kind, each in measured.items()},
            "exponents": {
                kind: {name: growth.exponent for name, growth in each.growths.items()}
                for kind, each in measured.items()
            },
        },
    )


def _source(bundles: Path | None, settings: Settings) -> Source:
    capacity = settings.capacity
    if bundles is None:
        return mixture(capacity.dim, seed=capacity.seed)
    source = widened(bundles, settings.index)
    if "dim" in capacity.model_fields_set and capacity.dim != source.dim:
        raise ConfigError(
            "setting --dim",
            got=str(capacity.dim),
            wanted=f"{source.dim}, as the vectors of `{bundles}` have",
            fix="Leave out --dim, or --bundles to measure with drawn vectors.",
        )
    return source


def _bytes_a_row(source: Source, folder: Path, *, seed: int) -> float:
    """Of a full shard of the job, with vectors that no index holds."""
    path = folder / "shard.npy"
    write_vectors(path, source, SHARD_ROWS, seed=seed, stream=3)
    return bytes_a_row(np.load(path))


def _summary(
    embedding: EmbeddingPlan | None,
    plans: Mapping[str, IndexPlan],
    absent: Mapping[str, str],
    wrong: Mapping[str, tuple[float, ...]],
    settings: CapacitySettings,
    memory_gib: float,
) -> list[str]:
    told = []
    if embedding is not None:
        told.append(
            f"Embedding {settings.skills:,} skills takes {ranged(embedding.one_machine_h)} hours on one machine like "
            f"this one, so {embedding.machines.num:,} of them for {settings.hours:g} hours."
        )
    told += [
        f"`{kind}` takes {number(plan.memory_bytes.value / 2**30)} GiB: {times(plan.machines.num, 'machine')} of "
        f"{memory_gib:.1f} GiB."
        for kind, plan in plans.items()
    ]
    told.append(
        "Computed by extrapolation from the sizes that were measured; ranges are those of rounds and of growth."
    )
    told += [f"{kind} was NOT measured: {why}." for kind, why in absent.items()]
    told += [
        f"`{kind}` is exact, and found {min(recalls):.3f} of the nearest only: its figures are WRONG."
        for kind, recalls in wrong.items()
    ]
    return told


def _method(
    source: Source, rate: Rate | None, a_row: float, settings: CapacitySettings, memory_gib: float
) -> list[str]:
    sizes = ", ".join(f"{rows:,}" for rows in sorted(settings.rows))
    return [
        source.told,
        (
            f"Indexes of {sizes} vectors of {source.dim} numbers, in {times(settings.rounds, 'round')} in turns, each "
            "built in a process of its own, and opened and searched in another one, whose resident memory is compared "
            f"before and after. {settings.num_queries} queries like the vectors, {settings.top_k} nearest; lone "
            "searches for three seconds at most, then as many at once as these would fill. "
            f"IVF: 4·√n lists, {settings.num_probes} looked into; HNSW: 32 links, {settings.search_breadth} candidates."
        ),
        "Recall is of numpy's exact neighbours among the same vectors. It is measured, and not extrapolated.",
        (
            "Extrapolated is from the largest size by the algorithm's law, for memory, files and training beside a "
            "fixed part. The range is the hull of the law with and without such a part, the rounds, and, but for "
            "bytes, a power law with the exponent that was found."
        ),
        (
            f"A machine is one like this with {memory_gib:.1f} GiB, {settings.memory_share:.0%} of which an index may "
            f"fill; {settings.other_bytes} bytes a skill are added for what else a searching machine holds. Times are "
            "those of one machine's part; every machine takes part in every search. Network and merging are left out."
        ),
        (
            "Milvus Lite is one Python process, for trials, searched through the client, which fetches nominees and "
            "sums anew. It is measured at a quarter of the sizes, and its figures say nothing of a cluster. That of a "
            f"cluster is memory alone, FAISS's times an assumed {settings.milvus_factor:g}."
        ),
        (
            f"Skills a second: {'not known' if rate is None else rate.told}. "
            f"{number(a_row)} bytes a row of a Parquet shard of {SHARD_ROWS:,}."
        ),
    ]
