"""Assigning skills to categories: each category is embedded as a request, and the nearest one wins.

Shape legend: N skills, C categories, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from skillserve.errors import RepositoryError
from skillserve_client.batch.audit.taxonomy import Taxonomy
from skillserve_client.models import Source
from skillserve_client.tokens import embedder_tokens
from skillserve_client.vectors import Rows
from skillserve_client.wire import Floats, Inference

__all__ = ["Assigned", "assign", "embed_taxonomy"]

_ROWS_AT_ONCE = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """Of each skill, `[N]`."""

    category: Rows
    """The nearest one; of equals the first."""
    runner_up: Rows
    """The second nearest."""
    similarity: Floats
    margin: Floats
    """How much nearer than the second one."""
    major_margin: Floats
    """How much nearer than the nearest one of another major category; NaN where there is no other."""


def embed_taxonomy(taxonomy: Taxonomy, source: Source, inference: Inference, *, model: Mapping[str, str]) -> Floats:
    """Vectors of the categories `[C, D]`, by the very graph that made the skills' vectors.

    `model` is what their manifest says of it. Raises RepositoryError for another one, and ServerError.
    """
    served = source.served
    if (served.digest, served.graph_digest) != (model["digest"], model["graph_digest"]):
        raise RepositoryError(
            "embedder of the taxonomy",
            got=f"{served.digest[:12]}, graph {served.graph_digest[:12]}",
            wanted=f"{model['digest'][:12]}, graph {model['graph_digest'][:12]}, which made the vectors",
            fix="Serve that one, name its repository with --models, or audit with --no-categories.",
        )
    tokens = embedder_tokens(source.card, source.tokenizer_json)
    read = tokens.queries([category.request for category in taxonomy.categories])
    return inference.infer("embedder", [cut.ids for cut in read], digest=served.digest)


def assign(vectors: Floats, categories: Floats, majors: Sequence[str]) -> Assigned:
    """The nearest category of each skill `[N, D]` among `[C, D]`, C ≥ 2; `majors` are the categories' own."""
    above = np.array([list(dict.fromkeys(majors)).index(major) for major in majors])
    parts = [
        _assigned(vectors[i : i + _ROWS_AT_ONCE], categories, above) for i in range(0, len(vectors), _ROWS_AT_ONCE)
    ]
    return Assigned(
        category=np.concatenate([part.category for part in parts]),
        runner_up=np.concatenate([part.runner_up for part in parts]),
        similarity=np.concatenate([part.similarity for part in parts]),
        margin=np.concatenate([part.margin for part in parts]),
        major_margin=np.concatenate([part.major_margin for part in parts]),
    )


def _assigned(vectors: Floats, categories: Floats, above: Rows) -> Assigned:
    near = vectors.astype(np.float64) @ categories.T.astype(np.float64)
    rows = np.arange(len(near))
    order = np.argsort(-near, axis=1, kind="stable")
    first, second = order[:, 0], order[:, 1]
    best = near[rows, first]
    elsewhere = np.where(above == above[first, None], -np.inf, near).max(axis=1)
    return Assigned(
        category=first,
        runner_up=second,
        similarity=best.astype(np.float32),
        margin=(best - near[rows, second]).astype(np.float32),
        major_margin=np.where(np.isfinite(elsewhere), best - elsewhere, np.nan).astype(np.float32),
    )
