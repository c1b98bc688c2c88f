"""From runs to figures: means with intervals, differences to the first system, and groups of requests.

Shape legend: Q queries, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skillserve.bootstrap import Difference, Estimate, difference, estimate, resampled_means
from skillserve.breakdown import Groups, by_namespace, by_num_golds
from skillserve.collection import Collection
from skillserve.metrics import per_query
from skillserve.records import Run
from skillserve.settings import EvaluateSettings

__all__ = ["HEADLINE", "Figures", "Group", "K", "measure_runs"]

K = 10
"""The cutoff of the headline."""

HEADLINE = (f"ndcg@{K}", f"recall@{K}", f"completeness@{K}", f"map@{K}")

Table = Mapping[str, npt.NDArray[np.float64]]
"""Metric → its value for each query `[Q]`, or its resampled means `[R]`."""


@dataclass(frozen=True, slots=True)
class Group:
    """The figures of some of the queries."""

    num_queries: int
    metrics: Mapping[str, Estimate]
    """Those of the headline."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one system."""

    metrics: Mapping[str, Estimate]
    """`ndcg@5` and so on → mean over the queries, with its interval."""
    differences: Mapping[str, Difference] | None
    """Metric → this system minus the first one, paired by query; None for the first one itself."""
    by_num_golds: Mapping[str, Group]
    by_namespace: Mapping[str, Group]

    def to_dict(self) -> dict[str, Any]:
        """The figures as `--json` prints them."""
        return asdict(self)


def measure_runs(runs: Sequence[Run], collection: Collection, settings: EvaluateSettings) -> list[Figures]:
    """The figures of each run, in order; a query that a run lacks counts as 0 there."""
    tables = [_table(run, collection, settings) for run in runs]
    differences: list[Table] = [{name: table[name] - tables[0][name] for name in table} for table in tables[1:]]
    means = _resampled([*tables, *differences], settings)
    metrics = [_estimates(table, found) for table, found in zip(tables, means[: len(tables)], strict=True)]
    paired = [
        {name: difference(table[name], found[name]) for name in table}
        for table, found in zip(differences, means[len(tables) :], strict=True)
    ]
    num_golds = _grouped(by_num_golds(collection), tables, settings)
    namespaces = _grouped(by_namespace(collection), tables, settings)
    return [Figures(*each) for each in zip(metrics, [None, *paired], num_golds, namespaces, strict=True)]


def _table(run: Run, collection: Collection, settings: EvaluateSettings) -> Table:
    values = per_query(run, collection.qrels, cutoffs=sorted({K, *settings.ks}))
    return {name: np.array([found[query.id] for query in collection.queries]) for name, found in values.items()}


def _grouped(groups: Groups, tables: Sequence[Table], settings: EvaluateSettings) -> list[dict[str, Group]]:
    """For each table its groups."""
    found: list[dict[str, Group]] = [{} for _ in tables]
    for title, rows in groups.items():
        parts: list[Table] = [{name: table[name][list(rows)] for name in HEADLINE} for table in tables]
        for own, part, means in zip(found, parts, _resampled(parts, settings), strict=True):
            own[title] = Group(len(rows), _estimates(part, means))
    return found


def _resampled(tables: Sequence[Table], settings: EvaluateSettings) -> list[Table]:
    """Means of the same draws for all columns of all tables."""
    columns_QC = np.column_stack([column for table in tables for column in table.values()])
    means = iter(resampled_means(columns_QC, resamples=settings.resamples, seed=settings.seed).T)
    return [{name: next(means) for name in table} for table in tables]


def _estimates(table: Table, means: Table) -> dict[str, Estimate]:
    return {name: estimate(values, means[name]) for name, values in table.items()}
