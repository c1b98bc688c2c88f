"""What kills cost, in words and tables."""

from __future__ import annotations

from collections.abc import Sequence

from skillserve_bench.figures import times
from skillserve_bench.report import Table
from skillserve_bench.score.killing import Ordeal

__all__ = ["damage_sentence", "damage_tables"]

_MOST_ROWS = 15
"""A longer list of single kills is left to the figures."""


def damage_sentence(ordeal: Ordeal) -> str:
    """One kind of job."""
    return (
        f"`{ordeal.kind}`, {times(len(ordeal.kills), 'kill')}: {ordeal.lost} finished shards lost, {ordeal.repeated} "
        f"computed again; {'every row once' if ordeal.each_row_once else 'rows MISSING or TWICE'}; the result "
        f"{'is that of an undisturbed run, byte for byte' if ordeal.identical else 'DIFFERS from an undisturbed run'}."
    )


def damage_tables(ordeals: Sequence[Ordeal]) -> list[Table]:
    """Kinds, then single kills if they are few."""
    kinds = Table(
        title="Kills of each kind of job",
        columns=["job", "kills", "lost", "computed again", "every row once", "identical at the end"],
        rows=[
            [
                ordeal.kind,
                *map(str, (len(ordeal.kills), ordeal.lost, ordeal.repeated)),
                "yes" if ordeal.each_row_once else "NO",
                "yes" if ordeal.identical else "NO",
            ]
            for ordeal in ordeals
        ],
    )
    rows = [
        [
            ordeal.kind,
            *map(str, (i, kill.before, kill.resumed, kill.computed, kill.repeated, kill.missing, kill.after)),
        ]
        for ordeal in ordeals
        for i, kill in enumerate(ordeal.kills, 1)
    ]
    if len(rows) > _MOST_ROWS:
        return [kinds]
    columns = ["finished before", "gone on from", "told of as new", "computed again", "lost", "finished after"]
    return [kinds, Table(title="Kills", columns=["job", "kill", *columns], rows=rows)] if rows else [kinds]
