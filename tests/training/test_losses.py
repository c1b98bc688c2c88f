"""Losses against sentence-transformers', against plain loops, and against what they promise."""

from __future__ import annotations

import math

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from torch.nn import functional

from skillserve_training.losses import (
    listwise_loss,
    nested,
    pointwise_loss,
    ranking_loss,
    relation_loss,
    scores_with_parts,
)

NOBODY = torch.zeros(6, 6, dtype=torch.bool)
ALL = torch.arange(6)


def rows(num: int, dim: int = 16, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(
    ("symmetric", "directions"), [(False, ("query_to_doc",)), (True, ("query_to_doc", "doc_to_query"))]
)
def test_without_exclusions_it_is_the_library_s_loss(symmetric: bool, directions: tuple[str, ...]) -> None:  # noqa: FBT001
    requests, skills = rows(6), rows(6, seed=1)
    reference = MultipleNegativesRankingLoss(
        model=torch.nn.Identity(), scale=20.0, directions=directions, partition_mode="per_direction"
    )
    expected = reference.compute_loss_from_embeddings([requests, skills], None)
    found = ranking_loss(requests @ skills.T, NOBODY, ALL, scale=20.0, symmetric=symmetric)
    torch.testing.assert_close(found, expected)


def test_an_excluded_skill_is_as_if_it_were_not_there() -> None:
    requests, skills = rows(3), rows(4, seed=1)
    excluded = torch.zeros(3, 4, dtype=torch.bool)
    excluded[0, 2] = True
    found = ranking_loss(requests @ skills.T, excluded, torch.tensor([0]), scale=2.0, symmetric=False)
    cosines = [2.0 * float(requests[0] @ skills[column]) for column in (0, 1, 3)]
    assert float(found) == pytest.approx(math.log(sum(map(math.exp, cosines))) - cosines[0], rel=1e-5)


def test_the_processes_mean_of_their_own_rows_is_the_loss_of_all() -> None:
    requests, skills = rows(6), rows(6, seed=1)
    whole = ranking_loss(requests @ skills.T, NOBODY, ALL, scale=20.0, symmetric=True)
    parts = [ranking_loss(requests @ skills.T, NOBODY, part, scale=20.0, symmetric=True) for part in ALL.split(3)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_a_student_that_ranks_as_its_teacher_has_nothing_to_learn_whatever_the_dimension() -> None:
    requests, skills = rows(6), rows(6, seed=1)
    turned, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))
    wider = [functional.pad(each @ turned, (0, 8)) for each in (requests, skills)]
    same = relation_loss((requests, skills), (wider[0], wider[1]), ALL, scale=20.0)
    other = relation_loss((requests, skills), (rows(6, 24, 5), rows(6, 24, 6)), ALL, scale=20.0)
    assert float(same) == pytest.approx(0.0, abs=1e-5)
    assert float(other) > 0.1


def test_nested_rows_are_judged_by_their_first_entries_too() -> None:
    requests, skills = rows(6), rows(6, seed=1)

    def loss_of(left: Tensor, right: Tensor) -> Tensor:
        return ranking_loss(left @ right.T, NOBODY, ALL, scale=20.0, symmetric=False)

    cut = [functional.normalize(each[:, :4], dim=-1) for each in (requests, skills)]
    expected = (loss_of(requests, skills) + loss_of(cut[0], cut[1])) / 2
    torch.testing.assert_close(nested(loss_of, (requests, skills), (4,)), expected)


def test_a_request_with_parts_is_scored_by_the_part_that_fits_best() -> None:
    """Against plain loops; a request whose only part is itself has its cosines."""
    requests, skills, others = rows(3), rows(4, seed=1), rows(6, seed=2)
    parts = torch.stack([others[0:2], others[2:4], torch.stack([requests[2], requests[2]])])
    found = scores_with_parts(requests, parts, skills, 0.5)
    for i, request in enumerate(requests):
        for j, skill in enumerate(skills):
            best = max(float(part @ skill) for part in parts[i])
            assert float(found[i, j]) == pytest.approx((float(request @ skill) + 0.5 * best) / 1.5, abs=1e-6)
    torch.testing.assert_close(found[2], requests[2] @ skills.T)


def test_a_list_is_judged_by_its_first_skill() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5])
    exps = [math.exp(value) for value in logits.tolist()]
    assert float(listwise_loss(logits)) == pytest.approx(-math.log(exps[0] / sum(exps)))
    sigmoid = [1 / (1 + math.exp(-value)) for value in logits.tolist()]
    expected = -(math.log(sigmoid[0]) + math.log(1 - sigmoid[1]) + math.log(1 - sigmoid[2])) / 3
    assert float(pointwise_loss(logits)) == pytest.approx(expected)
