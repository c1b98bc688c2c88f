"""What an audit finds out, and the figures that sum it up.

Shape legend: N skills, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from skillserve.console import Bar
from skillserve.settings import AuditSettings
from skillserve_client.batch.audit.catalogue import Skills
from skillserve_client.batch.audit.categories import Assigned
from skillserve_client.batch.audit.groups import Forest, Group, first_of_text
from skillserve_client.batch.audit.hubs import Crowding, are_hubs, occurrences_of, skewness
from skillserve_client.batch.audit.neighbours import neighbour_blocks
from skillserve_client.batch.audit.taxonomy import Taxonomy
from skillserve_client.vectors import Rows
from skillserve_client.wire import Floats

__all__ = ["Compared", "compare", "summarise"]

_NUM_SHOWN = 10
"""Groups, hubs and crowding skills that a summary names."""
_LEVELS = (0.8, 0.85, 0.9, 0.95, 0.99)
"""Similarities of the nearest neighbour that skills are counted at: what other thresholds would come to."""
_QUANTILES = (0.1, 0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """All skills compared with each other."""

    similarities: Floats
    """`[N, K]`."""
    neighbours: Rows
    """`[N, K]`."""
    groups: list[Group]
    first_of_text: Rows
    """`[N]`."""
    occurrences: Rows
    """`[N]`."""


def compare(skills: Skills, settings: AuditSettings, bar: Bar) -> Compared:
    """Neighbours, groups and k-occurrences of a catalogue."""
    forest, first = Forest(len(skills)), first_of_text(skills.texts)
    # Equal texts may differ in the last bits of their vectors, and belong together at any threshold.
    forest.join(np.stack([first, np.arange(len(skills))], axis=1))
    similarities, neighbours = [], []
    blocks = neighbour_blocks(
        skills.vectors, num_neighbours=settings.num_neighbours, threshold=settings.duplicate_similarity
    )
    for block in blocks:
        forest.join(block.pairs)
        similarities.append(block.similarities)
        neighbours.append(block.rows)
        bar.advance(len(block.rows))
    rows = np.concatenate(neighbours)
    return Compared(
        similarities=np.concatenate(similarities),
        neighbours=rows,
        groups=forest.groups(skills.vectors),
        first_of_text=first,
        occurrences=occurrences_of(rows),
    )


def summarise(
    skills: Skills,
    compared: Compared,
    *,
    threshold: float,
    crowding: Crowding | None,
    taxonomy: Taxonomy | None,
    assigned: Assigned | None,
) -> dict[str, Any]:
    """The figures, as `summary.json` and `--json` have them."""
    return {
        "num_skills": len(skills),
        "dim": skills.vectors.shape[1],
        "nearest": _nearest(compared.similarities[:, 0]),
        "duplicates": _duplicates(skills, compared, threshold),
        "hubs": _hubs(skills, compared),
        "rankings": None if crowding is None else _rankings(skills, crowding),
        "categories": None if taxonomy is None or assigned is None else _categories(taxonomy, assigned),
    }


def _nearest(similarities: Floats) -> dict[str, Any]:
    quantiles = np.quantile(similarities, _QUANTILES)
    return {
        "quantiles": {f"{share:g}": float(value) for share, value in zip(_QUANTILES, quantiles, strict=True)},
        "at_least": {f"{level:g}": int((similarities >= np.float32(level)).sum()) for level in _LEVELS},
    }


def _duplicates(skills: Skills, compared: Compared, threshold: float) -> dict[str, Any]:
    groups = compared.groups
    num_members = sum(len(group.rows) for group in groups)
    return {
        "threshold": threshold,
        "num_groups": len(groups),
        "num_skills": num_members,
        "num_spare": num_members - len(groups),
        "num_same_text": int((compared.first_of_text != np.arange(len(skills))).sum()),
        "largest": [
            {**_named(skills, group.representative), "size": len(group.rows), "lowest": float(group.similarities.min())}
            for group in groups[:_NUM_SHOWN]
        ],
    }


def _hubs(skills: Skills, compared: Compared) -> dict[str, Any]:
    counts = compared.occurrences
    return {
        "num_neighbours": compared.neighbours.shape[1],
        "skewness": skewness(counts),
        "num_hubs": int(are_hubs(counts).sum()),
        "num_never": int((counts == 0).sum()),
        "most": [{**_named(skills, row), "occurrences": int(counts[row])} for row in _highest(counts)],
    }


def _rankings(skills: Skills, crowding: Crowding) -> dict[str, Any]:
    counts = crowding.rankings
    return {
        "num_rankings": crowding.num_rankings,
        "skewness": skewness(counts),
        "num_never": int((counts == 0).sum()),
        "most": [
            {**_named(skills, row), "rankings": int(counts[row]), "first": int(crowding.first[row])}
            for row in _highest(counts)
        ],
    }


def _categories(taxonomy: Taxonomy, assigned: Assigned) -> dict[str, Any]:
    counts = np.bincount(assigned.category, minlength=len(taxonomy.categories))
    return {
        "taxonomy": taxonomy.name,
        "source": taxonomy.source,
        "median_margin": float(np.median(assigned.margin)),
        "counts": [
            {"major": category.major, "sub": category.sub, "num_skills": int(count)}
            for category, count in zip(taxonomy.categories, counts, strict=True)
        ],
    }


def _highest(counts: Rows) -> list[int]:
    """Rows with the most, those with none left out; of equals the first."""
    rows = np.argsort(-counts, kind="stable")[:_NUM_SHOWN]
    return [int(row) for row in rows if counts[row]]


def _named(skills: Skills, row: int) -> dict[str, Any]:
    return {"id": skills.ids[row], "name": skills.names[row]}
