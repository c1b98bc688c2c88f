"""Figures for people: tables of points, which are hundredths, as the field prints them."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from skillserve.bootstrap import Difference, Estimate
from skillserve.collection import Collection
from skillserve.console import out
from skillserve.figures import HEADLINE, Figures, Group

__all__ = ["metric_title", "paired_with_interval", "show_all", "show_headline", "with_interval"]

_TITLES = {"ndcg": "NDCG", "recall": "Recall", "completeness": "Completeness", "map": "MAP", "precision": "P"}
_LEADING, *_OTHERS = HEADLINE
_MEAN = "12.34 [12.3, 12.3]"
"""As wide as what is not to be broken."""


def show_headline(figures: Mapping[str, Figures], collection: Collection) -> None:
    """One row a system, the first one being what the others are compared with."""
    broken = (metric_title(metric).replace("@", "\n@") for metric in _OTHERS)
    several = len(figures) > 1
    table = _table("system", f"{metric_title(_LEADING)}\n[95 %]", *(["difference\n[95 %]"] if several else []), *broken)
    for name, found in figures.items():
        paired = Text() if found.differences is None else _cell(paired_with_interval(found.differences[_LEADING]))
        others = (_points(found.metrics[metric].mean) for metric in _OTHERS)
        table.add_row(
            Text(name), _cell(with_interval(found.metrics[_LEADING])), *([paired] if several else []), *others
        )
    out.print(table)
    compared = f" · difference to {next(iter(figures))} in {metric_title(_LEADING)}, paired" if several else ""
    out.print(
        f"points of 100 · {len(collection.queries):,} requests with {collection.num_golds:,} fitting skills among "
        f"{len(collection.skills):,}{compared}",
        markup=False,
        soft_wrap=True,
    )


def show_all(figures: Mapping[str, Figures]) -> None:
    """All metrics of each system, then the leading metric of the groups."""
    for name, found in figures.items():
        table = _table("metric", "mean [95 %]", *(["difference [95 %]", "p"] if found.differences else []))
        for metric, estimate in found.metrics.items():
            paired = found.differences[metric] if found.differences else None
            more = [] if paired is None else [_cell(paired_with_interval(paired)), Text(f"{paired.p:.4f}")]
            table.add_row(metric_title(metric), _cell(with_interval(estimate)), *more)
        _print_titled(name, table)
    _show_groups("skills that fit", {name: found.by_num_golds for name, found in figures.items()})
    _show_groups("namespace of a fitting skill", {name: found.by_namespace for name, found in figures.items()})


def _show_groups(title: str, groups: Mapping[str, Mapping[str, Group]]) -> None:
    table = _table(title, "requests")
    for name in groups:
        table.add_column(Text(f"{name} [95 %]", overflow="fold"), justify="right", min_width=len(_MEAN))
    first = next(iter(groups.values()))
    for group, found in first.items():
        cells = (_cell(with_interval(own[group].metrics[_LEADING])) for own in groups.values())
        table.add_row(Text(group), str(found.num_queries), *cells)
    _print_titled(f"{metric_title(_LEADING)} by {title}", table)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(Text(column), justify="right", no_wrap=True)
    return table


def _print_titled(title: str, table: Table) -> None:
    out.print(f"\n{title}", markup=False, soft_wrap=True)
    out.print(table)


def metric_title(metric: str) -> str:
    """`NDCG@10` for `ndcg@10`."""
    name, _, k = metric.partition("@")
    return f"{_TITLES[name]}@{k}"


def with_interval(found: Estimate) -> str:
    """`76.83 [73.5, 79.8]`: points, and their interval."""
    return f"{_points(found.mean)} [{found.low * 100:.1f}, {found.high * 100:.1f}]"


def paired_with_interval(found: Difference) -> str:
    """`+2.10 [+0.4, +3.9]`: points more, and their interval."""
    return f"{found.mean * 100:+.2f} [{found.low * 100:+.1f}, {found.high * 100:+.1f}]"


def _points(share: float) -> str:
    return f"{share * 100:.2f}"


def _cell(text: str) -> Text:
    """Not broken over lines, and its brackets are no markup."""
    return Text(text, no_wrap=True)
