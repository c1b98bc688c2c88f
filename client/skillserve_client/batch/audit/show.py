"""The summary of an audit, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from skillserve.console import out

__all__ = ["show"]

_NUM_ROWS = 5
"""Of each list; the tables have all."""


def show(summary: Mapping[str, Any], folder: str) -> None:
    """Print what was found."""
    _show_duplicates(summary)
    _show_hubs(summary)
    if summary["categories"]:
        _show_categories(summary["categories"], summary["num_skills"])
    _say(f"{summary['num_skills']:,} skills audited into {folder}")


def _show_duplicates(summary: Mapping[str, Any]) -> None:
    found, nearest = summary["duplicates"], summary["nearest"]
    _say(
        f"near duplicates (similarity ≥ {found['threshold']:g}): {found['num_groups']:,} groups of "
        f"{found['num_skills']:,} skills, {found['num_spare']:,} to spare; "
        f"{found['num_same_text']:,} are copies to the letter"
    )
    rows = ((each["name"], each["id"], str(each["size"]), f"{each['lowest']:.3f}") for each in found["largest"])
    _table(("representative", "id"), ("size", "lowest similarity"), rows)
    levels = " · ".join(f"≥ {level}: {count:,}" for level, count in nearest["at_least"].items())
    _say(f"nearest neighbour {nearest['quantiles']['0.5']:.3f} in the median; skills with one {levels}\n")


def _show_hubs(summary: Mapping[str, Any]) -> None:
    found, rankings = summary["hubs"], summary["rankings"]
    _say(
        f"hubs among the {found['num_neighbours']} nearest of each skill: {found['num_hubs']:,} · skewness "
        f"{_figure(found['skewness'])} · {found['num_never']:,} skills are nobody's neighbour"
    )
    _table(
        ("skill", "id"),
        ("lists",),
        ((each["name"], each["id"], str(each["occurrences"])) for each in found["most"]),
    )
    if rankings:
        _say(
            f"\nhits of {rankings['num_rankings']:,} rankings: skewness {_figure(rankings['skewness'])} · "
            f"{rankings['num_never']:,} skills are in none"
        )
        _table(
            ("skill", "id"),
            ("rankings", "first"),
            ((each["name"], each["id"], str(each["rankings"]), str(each["first"])) for each in rankings["most"]),
        )


def _show_categories(found: Mapping[str, Any], num_skills: int) -> None:
    _say(f"\ncategories of {found['taxonomy']} ({found['source']}), median margin {found['median_margin']:.3f}")
    rows = (
        (each["major"], each["sub"], f"{each['num_skills']:,}", f"{each['num_skills'] / num_skills:.1%}")
        for each in found["counts"]
    )
    _table(("major", "sub"), ("skills", "share"), rows, most=len(found["counts"]))


def _table(
    words: Sequence[str], figures: Sequence[str], rows: Iterable[Sequence[str]], *, most: int = _NUM_ROWS
) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for title in words:
        table.add_column(title, overflow="fold")
    for title in figures:
        table.add_column(title, justify="right", no_wrap=True)
    for row in list(rows)[:most]:
        table.add_row(*map(Text, row))
    if table.row_count:
        out.print(table)


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _say(line: str) -> None:
    out.print(line, markup=False, soft_wrap=True)
