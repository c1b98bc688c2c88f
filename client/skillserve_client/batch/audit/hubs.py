"""Hubs: skills that crowd many rankings, those of other skills and those of requests.

The k-occurrence of a skill is the number of others that have it among their k nearest. Its distribution grows a long
right tail with the dimension; its skewness measures hubness (Radovanović, Nanopoulos, Ivanović 2010, Hubs in Space,
Journal of Machine Learning Research 11, which also calls a hub what lies two standard deviations above the mean).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skillserve.errors import OutputError
from skillserve_client.batch.finished import Finished
from skillserve_client.vectors import Rows

__all__ = ["Crowding", "are_hubs", "crowding_of", "occurrences_of", "skewness"]

_HUB_DEVIATIONS = 2.0


@dataclass(frozen=True, slots=True)
class Crowding:
    """How often skills stand in rankings of requests."""

    num_rankings: int
    """Rankings with hits: those of requests that abstained have none."""
    rankings: Rows
    """`[N]`: in how many a skill is among the hits."""
    first: Rows
    """`[N]`: in how many it is the first one."""


def occurrences_of(neighbours: Rows) -> Rows:
    """k-occurrences `[N]`, from the lists `[N, K]` of all skills."""
    counts: Rows = np.bincount(neighbours.ravel(), minlength=len(neighbours)).astype(np.int64)
    return counts


def skewness(counts: Rows) -> float | None:
    """Third standardised moment, E[(x - µ)³] / σ³; None where all are equal."""
    apart = counts - counts.mean()
    deviation = float(np.sqrt((apart**2).mean()))
    return float((apart**3).mean() / deviation**3) if deviation else None


def are_hubs(counts: Rows) -> npt.NDArray[np.bool_]:
    """`[N]`: more than two standard deviations above the mean."""
    hubs: npt.NDArray[np.bool_] = counts > counts.mean() + _HUB_DEVIATIONS * counts.std()
    return hubs


def crowding_of(rankings: Finished, ids: list[str]) -> Crowding:
    """Count the hits of a finished `rank`; OutputError where it found a skill that is not of this catalogue."""
    row_of = {skill_id: row for row, skill_id in enumerate(ids)}
    counts, first = np.zeros((2, len(ids)), np.int64)
    num_rankings = 0
    for entry, table in rankings.tables():
        for hits in table.column("hits").to_pylist():
            found = [hit["skill_id"] for hit in hits or ()]
            strange = [skill_id for skill_id in found if skill_id not in row_of]
            if strange:
                raise OutputError(
                    f"rankings `{rankings.path}`",
                    got=f"the skill `{strange[0]}` in {entry.file}",
                    wanted="rankings of this catalogue",
                    fix="Index this catalogue and rank again, or leave out --rankings.",
                )
            if found:
                num_rankings += 1
                first[row_of[found[0]]] += 1
                counts[[row_of[skill_id] for skill_id in found]] += 1
    return Crowding(num_rankings, counts, first)
