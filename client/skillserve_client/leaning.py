"""Towards which kind of known request a request leans: its embedding along the line between the means of both kinds.

That is its similarity to the mean request that some skill fits, less that to the mean request that none does (the
nearest class mean, Mensink et al. 2013). It asks what is wanted, where scores ask what the catalogue has: small talk
that shares a subject with a skill is told by it, a task that merely no skill covers is not.

Shape legend: S samples, D dimensions of the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from skillserve_client.calibration import Doubles
from skillserve_client.wire import Floats

__all__ = ["direction_between", "leanings"]


def direction_between(embeddings: Floats, outcomes: Sequence[str]) -> Doubles:
    """The line `[D]`: mean of the answerable embeddings `[S, D]` less the mean of those that nothing fits.

    Samples whose skills were left out are answerable requests over again and take no part.
    """
    kinds = np.asarray(outcomes)
    answerable, none = (embeddings[kinds == kind].mean(axis=0, dtype=np.float64) for kind in ("answerable", "none"))
    return np.asarray(answerable - none, np.float64)


def leanings(embeddings: Floats, outcomes: Sequence[str], seen: npt.NDArray[np.bool_]) -> Doubles:
    """How far every sample leans `[S]`, by the means of the samples in `seen`, both kinds among them.

    A seen sample's own request is taken out of its mean: with it, what is known would lean further than what is new,
    and a curve fitted on that would be too sure. What shares a request has to be seen together.
    """
    rows, kinds = embeddings.astype(np.float64), np.asarray(outcomes)
    lengths = (rows**2).sum(axis=1)
    none = kinds == "none"
    found = np.zeros(len(rows))
    for sign, kind, of_kind in ((1, "answerable", ~none), (-1, "none", none)):
        known = rows[seen & (kinds == kind)]
        along = rows @ known.mean(axis=0)
        among_others = (len(known) * along - lengths) / max(len(known) - 1, 1)
        found += sign * np.where(seen & of_kind, among_others, along)
    return found
