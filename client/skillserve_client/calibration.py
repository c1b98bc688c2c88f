"""The calibration of a bundle: from scores to probabilities, and the threshold below which an answer abstains.

Two events, each with a curve of its own for either stage that a search may end in, since their scores are on
different scales:

    request   some skill of the catalogue fits this request     → `Answer.probability`, decides about abstaining
    hit       this very skill fits                               → `Hit.probability`

Reading and applying needs numpy alone; `skillserve_client.fitting` makes the curves.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from skillserve.fusion import FirstStageWeights
from skillserve.tensors import Role
from skillserve_client.manifest import Record, Sha256

__all__ = [
    "EMBED_DEPTH",
    "KINDS",
    "NUM_BACKGROUND",
    "Bin",
    "Calibration",
    "Curve",
    "Doubles",
    "Feature",
    "Fit",
    "Kind",
    "Knot",
    "Point",
    "StageCalibration",
    "StageName",
    "describe",
]

Doubles = npt.NDArray[np.float64]
StageName = Literal["rerank", "embed"]
Kind = Literal["platt", "isotonic"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Feature = Literal["score", "similarity", "gap", "lead", "background", "leaning"]
"""What a curve looks at. `score`: the final score of the hit, in an embed-only answer its first-stage score, for a
request that of its first hit; `similarity`: the highest similarity of any skill; `gap`: first score - second;
`lead`: first score - mean of all others; `background`: mean similarity of the 100 nearest skills, high where the
catalogue knows the subject at all; `leaning`: whether the request resembles those that were answerable or those that
nothing fitted, see `skillserve_client.leaning`."""

EMBED_DEPTH = 20
"""Candidates that the features of an embed-only answer look at; a reranked answer's look at what was reranked."""

NUM_BACKGROUND = 100
"""Nearest skills that the feature `background` looks at."""

Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Inner = Annotated[float, Field(gt=0, lt=1)]


def describe(scores: npt.NDArray[Any], similarities: npt.NDArray[Any]) -> dict[Feature, float]:
    """What candidates say of a request: their scores `[N ≥ 1]`, and similarities `[M ≥ 1]` of the nearest skills.

    Similarities are descending. The leaning is not among them: it is of the request alone.
    """
    ordered = np.sort(np.asarray(scores, np.float64))[::-1]
    others = ordered[1:] if len(ordered) > 1 else ordered
    return {
        "score": float(ordered[0]),
        "similarity": float(similarities[0]),
        "gap": float(ordered[0] - others[0]),
        "lead": float(ordered[0] - others.mean()),
        "background": float(similarities[:NUM_BACKGROUND].mean(dtype=np.float64)),
    }


class Knot(Record):
    """One corner of a stepped curve: from linear predictor to probability, straight lines in between."""

    z: Finite
    probability: Inner


class Curve(Record):
    """Features become a linear predictor z = intercept + Σ coefficient · feature, and z a probability.

    Platt: 1 / (1 + exp(-z)) (Platt 1999). Isotonic: the straight lines between the knots, flat outside of them
    (Zadrozny and Elkan 2002).
    """

    kind: Kind
    features: tuple[Feature, ...] = Field(min_length=1)
    coefficients: tuple[Finite, ...]
    intercept: Finite
    knots: tuple[Knot, ...] = ()
    """Isotonic only; z rises, probabilities do not fall."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if len(self.coefficients) != len(self.features):
            raise ValueError("a curve has one coefficient for each feature")
        if (self.kind == "isotonic") != bool(self.knots):
            raise ValueError("an isotonic curve has knots, another one none")
        z = [knot.z for knot in self.knots]
        p = [knot.probability for knot in self.knots]
        if any(a >= b for a, b in pairwise(z)) or p != sorted(p):
            raise ValueError("knots rise in z and do not fall in probability")
        return self

    def predictors(self, features: Mapping[Feature, npt.ArrayLike]) -> Doubles:
        """Linear predictors, of one request or of many."""
        terms = [
            weight * np.asarray(features[name], np.float64)
            for name, weight in zip(self.features, self.coefficients, strict=True)
        ]
        return np.asarray(self.intercept + sum(terms), np.float64)

    def probabilities(self, features: Mapping[Feature, npt.ArrayLike]) -> Doubles:
        """Probabilities, of one request or of many."""
        return self.at(self.predictors(features))

    def at(self, z: npt.ArrayLike) -> Doubles:
        """Probabilities of linear predictors."""
        z = np.asarray(z, np.float64)
        if self.kind == "isotonic":
            corners = [knot.z for knot in self.knots], [knot.probability for knot in self.knots]
            return np.asarray(np.interp(z, *corners), np.float64)
        return np.asarray(0.5 * (1 + np.tanh(0.5 * z)), np.float64)  # the logistic function, without overflow


class Fit(Record):
    """How well a kind of curve fits requests that it was not fitted on (cross-validation)."""

    log_loss: float
    brier: float
    ece: Share


class Point(Record):
    """What a threshold does, cross-validated; shares at the stated share of requests that nothing fits."""

    threshold: Share
    coverage: Share
    """Share of all requests that get an answer."""
    risk: Share
    """Share of the answered ones whose first hit does not fit."""
    injected: Share
    """Share of the requests that nothing fits which get an answer all the same."""
    lost: Share
    """Share of the answerable requests that get none."""


class Bin(Record):
    """One point of the reliability diagram."""

    share: Share
    """Of the weight of all requests."""
    probability: Share
    """Mean of what was said."""
    rate: Share
    """Share that some skill fitted."""


class StageCalibration(Record):
    """Both curves of one stage, the threshold, and what cross-validation says of them."""

    depth: int = Field(ge=1)
    """Candidates that the features look at; a reranking of another depth has scores of another distribution."""
    request: Curve
    hit: Curve
    cut: Finite
    """An answer whose linear predictor is lower abstains."""
    threshold: Share
    """The probability of the cut: what is shown. A flat piece of an isotonic curve may lie on both sides of the cut."""
    at_threshold: Point
    left_out_injected: Share
    """Share of the requests whose own skills were left out that get an answer; a neighbour of those may well fit."""
    request_fits: dict[Kind, Fit]
    hit_fits: dict[Kind, Fit]
    feature_losses: dict[str, float]
    """Sets of features that were tried (`score+gap`) → cross-validated log loss of their Platt curve."""
    points: tuple[Point, ...]
    """The risk-coverage curve, by rising threshold."""
    bins: tuple[Bin, ...]
    """The reliability diagram, by rising probability."""


class Calibration(Record):
    """Everything that a bundle knows about its own certainty."""

    schema_version: Literal[1] = 1
    created: str
    """UTC, ISO 8601."""
    requests_digest: Sha256
    """Of all requests that it was fitted on."""
    catalogue_digest: Sha256
    models: dict[Role, Sha256]
    """Digests; scores of other models, or of another catalogue, mean something else."""
    lexical_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Of the first stage whose scores these are, as the next."""
    part_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    none_share: Inner
    """Assumed share of requests that no skill fits: the prior of every probability here."""
    left_out_share: Share
    """Share of the weight of those that was carried by answerable requests whose skills were left out."""
    false_injection: Inner
    """The share of `injected` that the thresholds were chosen for."""
    num_folds: int = Field(ge=2)
    seed: int = Field(ge=0)
    num_answerable: int = Field(ge=1)
    num_none: int = Field(ge=1)
    direction: tuple[Finite, ...] = ()
    """`[D]`: the product of a request's embedding with it is the request's leaning; empty if no curve looks at that."""
    stages: dict[StageName, StageCalibration]

    @property
    def weights(self) -> FirstStageWeights:
        """Both weights of the first stage."""
        return FirstStageWeights.of(self)

    @model_validator(mode="after")
    def _has_its_stages(self) -> Self:
        wanted = {"embed", "rerank"} if "reranker" in self.models else {"embed"}
        if set(self.stages) != wanted:
            raise ValueError(f"curves for {' and '.join(sorted(wanted))} are needed")
        if bool(self.direction) != any("leaning" in stage.request.features for stage in self.stages.values()):
            raise ValueError("a direction belongs to curves that look at the leaning, and they to it")
        return self

    def leaning(self, embeddings: npt.NDArray[Any]) -> dict[Feature, Doubles]:
        """The feature of that name, of embeddings `[…, D]`; nothing where no curve looks at it."""
        if not self.direction:
            return {}
        return {"leaning": np.asarray(embeddings.astype(np.float64) @ np.asarray(self.direction), np.float64)}
