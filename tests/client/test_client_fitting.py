"""Curves against references that know nothing of scikit-learn: gradients, brute force, and the definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from skillserve_client.calibration import Curve, Knot, describe
from skillserve_client.fitting import assign_folds, fit_curve, held_out

FEATURES = ("score", "gap")


@pytest.fixture(scope="module")
def data() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Two features on very different scales, overlapping labels, uneven weights of mean 1."""
    chance = np.random.default_rng(5)
    score, gap = chance.normal(3, 2, 300), chance.normal(0, 1e-3, 300)
    y = chance.uniform(size=300) < 1 / (1 + np.exp(-(score - 3 + 600 * gap)))
    w = chance.uniform(0.2, 3, 300)
    return {"score": score, "gap": gap}, y, w / w.mean()


def test_the_gradient_vanishes_at_the_platt_curve(data: tuple) -> None:
    """Weighted log loss plus half the squared coefficients of standardised features, differentiated by hand."""
    columns, y, w = data
    curve = fit_curve("platt", FEATURES, columns, y, w)
    z = curve.intercept + sum(c * columns[f] for c, f in zip(curve.coefficients, FEATURES, strict=True))
    residual = w * (1 / (1 + np.exp(-z)) - y)
    assert residual.sum() == pytest.approx(0, abs=1e-3)
    for coefficient, feature in zip(curve.coefficients, FEATURES, strict=True):
        values = columns[feature]
        mean = np.average(values, weights=w)
        spread = np.sqrt(np.average((values - mean) ** 2, weights=w))
        assert (residual * (values - mean) / spread).sum() + coefficient * spread == pytest.approx(0, abs=1e-3)
    assert curve.probabilities(columns) == pytest.approx(1 / (1 + np.exp(-z)))


def test_the_isotonic_curve_is_the_best_of_all_monotone_ones() -> None:
    """Every way to cut the sorted samples into blocks of equal probability, tried one by one."""
    x = np.arange(9.0)
    y = np.array([0, 1, 0, 0, 1, 0, 1, 1, 1], bool)
    w = np.array([1, 2, 1, 1, 0.5, 1.5, 1, 1, 1.0])
    curve = fit_curve("isotonic", ("score",), {"score": x}, y, w)
    found = curve.probabilities({"score": x})
    best, best_loss = found, np.inf
    for cuts in itertools.product([False, True], repeat=8):
        block = np.cumsum([0, *cuts])
        means = [np.average(y[block == b], weights=w[block == b]) for b in range(block.max() + 1)]
        if means == sorted(means):
            fitted = np.array(means)[block]
            if (loss := (w * (fitted - y) ** 2).sum()) < best_loss:
                best, best_loss = fitted, loss
    assert found == pytest.approx(np.clip(best, 1 / 11, 10 / 11))
    assert (np.diff(found) >= 0).all()


def test_no_finite_number_of_samples_proves_a_certainty() -> None:
    x, y = np.arange(8.0), np.arange(8) >= 4
    found = fit_curve("isotonic", ("score",), {"score": x}, y, np.ones(8)).probabilities({"score": x})
    assert (found.min(), found.max()) == (pytest.approx(0.1), pytest.approx(0.9))


def test_separable_samples_give_a_finite_curve() -> None:
    curve = fit_curve("platt", ("score",), {"score": np.arange(40.0)}, np.arange(40) >= 20, np.ones(40))
    assert np.isfinite([curve.intercept, *curve.coefficients]).all()


def test_a_feature_that_never_varies_says_nothing(data: tuple) -> None:
    columns, y, w = data
    still = {**columns, "lead": np.full(300, 7.0)}
    with_it, without = (fit_curve("platt", names, still, y, w) for names in (("score", "lead"), ("score",)))
    assert with_it.coefficients[1] == 0
    assert with_it.probabilities(still) == pytest.approx(without.probabilities(still), abs=1e-6)


def test_held_out_probabilities_never_saw_their_own_fold(data: tuple) -> None:
    """Flipping the labels of one fold changes what is said of the others, and nothing of the fold itself."""
    columns, y, w = data
    folds = np.arange(300) % 5
    _, before = held_out("platt", FEATURES, lambda _: columns, y, w, folds)
    _, after = held_out("platt", FEATURES, lambda _: columns, np.where(folds == 2, ~y, y), w, folds)
    assert (before[folds == 2] == after[folds == 2]).all()
    assert not np.isclose(before[folds != 2], after[folds != 2]).all()


def test_folds_keep_a_request_together_and_share_every_outcome() -> None:
    outcomes = ["answerable", "left out"] * 50 + ["none"] * 20
    groups = np.concatenate([np.repeat(np.arange(50), 2), np.arange(50, 70)])
    folds = assign_folds(outcomes, groups, num_folds=5, seed=1)
    assert all(len(set(folds[groups == group])) == 1 for group in range(70))
    assert [(folds[100:] == fold).sum() for fold in range(5)] == [4] * 5
    assert (assign_folds(outcomes, groups, num_folds=5, seed=1) == folds).all()


def test_a_curve_survives_json_to_the_bit(data: tuple) -> None:
    columns, y, w = data
    for kind in ("platt", "isotonic"):
        curve = fit_curve(kind, FEATURES, columns, y, w)
        again = Curve.model_validate_json(curve.model_dump_json())
        assert again.probabilities(columns).tobytes() == curve.probabilities(columns).tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"coefficients": (1.0,)},
        {"kind": "isotonic"},
        {"knots": (Knot(z=0, probability=0.5),)},
        {"kind": "isotonic", "knots": (Knot(z=0, probability=0.5), Knot(z=0, probability=0.6))},
        {"kind": "isotonic", "knots": (Knot(z=0, probability=0.5), Knot(z=1, probability=0.4))},
        {"intercept": float("nan")},
        {"features": ("score", "colour")},
    ],
)
def test_a_curve_that_contradicts_itself_is_refused(changes: dict) -> None:
    sound = {"kind": "platt", "features": FEATURES, "coefficients": (1.0, 2.0), "intercept": 0.0}
    Curve(**sound)
    with pytest.raises(ValidationError):
        Curve(**{**sound, **changes})


def test_extreme_predictors_do_not_overflow() -> None:
    curve = Curve(kind="platt", features=("score",), coefficients=(1.0,), intercept=0.0)
    assert curve.probabilities({"score": np.array([-1e308, 0, 1e308])}).tolist() == [0, 0.5, 1]


def test_features_are_what_they_say() -> None:
    found = describe(np.array([1.0, 4.0, 2.5]), np.array([0.75, 0.5, 0.25], np.float32))
    assert found == {"score": 4.0, "similarity": 0.75, "gap": 1.5, "lead": 4 - 1.75, "background": 0.5}
    alone = describe(np.array([2.0]), np.array([0.5]))
    assert (alone["gap"], alone["lead"]) == (0, 0)
    many = np.linspace(1, 0, 250)
    assert describe(many, many)["background"] == pytest.approx(many[:100].mean())
