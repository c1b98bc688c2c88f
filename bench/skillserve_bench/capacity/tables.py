"""The tables of a plan: for all skills, what was measured, and how it grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from skillserve.settings import CapacitySettings
from skillserve_bench.capacity.embedding import Rate
from skillserve_bench.capacity.field import Measured
from skillserve_bench.capacity.growth import Estimate
from skillserve_bench.capacity.plan import EmbeddingPlan, IndexPlan, Machine, Machines, machines_for_memory
from skillserve_bench.capacity.trials import MILVUS
from skillserve_bench.figures import Spread
from skillserve_bench.report import Table

__all__ = ["cluster_table", "embedding_table", "growth_table", "measured_table", "number", "plan_table", "ranged"]

_GIB = 2**30
_MILLION = 1_000_000
_TINY = 0.0001
_MEANINGS = {
    "train": "training, s",
    "add": "adding, s",
    "memory": "memory, MiB",
    "disk": "file, MiB",
    "search": "a lone search, ms",
    "batch": "a search of many, ms",
}
_FACTORS = {"memory": 2**-20, "disk": 2**-20, "search": 1e3, "batch": 1e3}


def number(value: float) -> str:
    """Three digits that mean something, and no exponent: `0.0123`, `1.23`, `12,346`; what is tiny is told as that."""
    if value < _TINY:
        return f"below {_TINY}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def ranged(estimate: Estimate) -> str:
    """`value (least to greatest)`; the value alone where nothing varies."""
    value, least, greatest = map(number, (estimate.value, estimate.least, estimate.greatest))
    return value if least == greatest else f"{value} ({least} to {greatest})"


def plan_table(
    plans: Mapping[str, IndexPlan],
    measured: Mapping[str, Measured],
    absent: Mapping[str, str],
    settings: CapacitySettings,
) -> Table:
    """What every kind takes for all skills."""
    columns = [
        "index",
        "memory, GiB",
        "machines",
        "vectors on each",
        "build, h",
        "a lone search, ms",
        "searches/s",
        "files, GiB",
        f"recall@{settings.top_k} as measured",
    ]
    rows = [
        [
            kind,
            ranged(plan.memory_bytes.scaled(1 / _GIB)),
            _machines(plan.machines),
            f"{plan.rows_each:,}",
            ranged(plan.build_h),
            ranged(plan.search_s.scaled(1e3)),
            ranged(plan.per_s),
            ranged(plan.disk_bytes.scaled(1 / _GIB)),
            f"{measured[kind].recalls[-1]:.3f} of {measured[kind].growths['add'].rows[-1]:,}",
        ]
        for kind, plan in plans.items()
    ]
    reasons = {kind: f"not measured: {why}" for kind, why in absent.items()}
    if MILVUS in measured:
        reasons[_spoken(MILVUS)] = "not planned with; its figures are below, and so is a cluster"
    rows += [[kind, why, *[""] * (len(columns) - 2)] for kind, why in reasons.items()]
    return Table(title=f"Indexes of {settings.skills:,} skills, computed", columns=columns, rows=rows)


def cluster_table(plans: Mapping[str, IndexPlan], machine: Machine, settings: CapacitySettings) -> Table:
    """What the same indexes would take on a Milvus cluster, if the assumed factor holds."""
    rows = []
    for kind, plan in plans.items():
        memory = plan.memory_bytes.scaled(settings.milvus_factor)
        machines = machines_for_memory(memory, machine)
        rows.append([kind, ranged(memory.scaled(1 / _GIB)), _machines(machines), "not measured"])
    return Table(
        title=f"A Milvus cluster of {settings.skills:,} skills, NOT measured: {settings.milvus_factor:g} times FAISS's "
        "memory assumed",
        columns=["index", "memory of its query nodes, GiB", "machines", "times"],
        rows=rows,
    )


def embedding_table(plan: EmbeddingPlan | None, rate: Rate | None, settings: CapacitySettings) -> Table:
    """What embedding all skills takes."""
    if plan is None or rate is None:
        rows = [["hours", "not computed: neither --repository with --data nor --skills-per-s"]]
    else:
        rows = [["skills/s of one machine", ranged(rate.per_s)]]
        if rate.tokens_per_s is not None:
            rows.append(["tokens/s of one machine", ranged(Estimate.of(rate.tokens_per_s))])
        rows += [
            ["hours on one machine", ranged(plan.one_machine_h)],
            [f"machines for {settings.hours:g} hours", _machines(plan.machines)],
            ["shards, files of `score embed`", f"{plan.num_shards:,}"],
            ["these files together, GiB", number(plan.file_bytes / _GIB)],
        ]
    return Table(title=f"Embedding {settings.skills:,} skills, computed", columns=["", "value (range)"], rows=rows)


def measured_table(measured: Mapping[str, Measured], settings: CapacitySettings) -> Table:
    """What was measured at each size."""
    rows = []
    for kind, each in measured.items():
        for i, size in enumerate(each.growths["add"].rows):
            cells = [_cell(each, name, i, factor / size) for name, factor in (("train", _MILLION), ("add", _MILLION))]
            cells += [_cell(each, name, i, 1 / size) for name in ("memory", "disk")]
            cells += [_cell(each, "search", i, 1e3), _per_s(each, i)]
            rows.append([_spoken(kind), f"{size:,}", *cells, f"{each.recalls[i]:.3f}"])
    return Table(
        title="Measured, median (min to max)",
        columns=[
            "index",
            "vectors",
            "training, s a million",
            "adding, s a million",
            "memory, bytes a vector",
            "file, bytes a vector",
            "a lone search, ms",
            "searches/s of many",
            f"recall@{settings.top_k}",
        ],
        rows=rows,
    )


def growth_table(measured: Mapping[str, Measured], settings: CapacitySettings) -> Table:
    """How every figure grew, and what that makes of all skills on one machine."""
    rows = []
    for kind, each in measured.items():
        for name, growth in each.growths.items():
            rows.append(
                [
                    f"{_spoken(kind)}: {_MEANINGS[name]}",
                    growth.law.name,
                    f"{growth.exponent:.2f}",
                    f"{growth.rows[-1]:,}",
                    ranged(Estimate.of(growth.largest).scaled(_FACTORS.get(name, 1.0))),
                    ranged(growth.at(settings.skills).scaled(_FACTORS.get(name, 1.0))),
                ]
            )
    return Table(
        title="Growth, and all skills on one machine, extrapolated",
        columns=[
            "figure",
            "law",
            "exponent found",
            "vectors, at most",
            "measured there",
            f"at {settings.skills:,}, extrapolated",
        ],
        rows=rows,
    )


def _cell(each: Measured, name: str, place: int, factor: float) -> str:
    if name not in each.growths:
        return "none"
    return _spread(each.growths[name].values[place], factor)


def _per_s(each: Measured, place: int) -> str:
    return _spread([1 / value for value in each.growths["batch"].values[place]], 1.0)


def _spread(values: Sequence[float], factor: float) -> str:
    return ranged(Estimate.of(Spread.of([value * factor for value in values])))


def _machines(machines: Machines) -> str:
    if machines.least == machines.greatest:
        return f"{machines.num:,}"
    return f"{machines.num:,} ({machines.least:,} to {machines.greatest:,})"


def _spoken(kind: str) -> str:
    return "Milvus Lite, one process" if kind == MILVUS else kind
