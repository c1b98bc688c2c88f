"""What training minimises: ranking losses over embeddings, losses over lists of logits, distillation.

Legend: P pairs of this process, W processes, D dimension, V parts of a request, C columns: the W · P paired skills,
then extra negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["listwise_loss", "nested", "pointwise_loss", "ranking_loss", "relation_loss", "scores_with_parts"]


def scores_with_parts(requests: Tensor, parts: Tensor, skills: Tensor, part_weight: float) -> Tensor:
    """First-stage scores `[W·P, C]` of unit rows, as a search with parts has them, brought back to a cosine's range.

    `requests` `[W·P, D]`, `parts` `[W·P, V, D]`, `skills` `[C, D]`. A skill need only fit one part of a request: which
    one, nobody has written down, and the maximum finds out (multiple-instance learning, Dietterich et al., 1997).
    """
    of_parts = (parts.flatten(0, 1) @ skills.T).view(*parts.shape[:2], -1)
    scores: Tensor = (requests @ skills.T + part_weight * of_parts.amax(1)) / (1 + part_weight)
    return scores


def ranking_loss(scores: Tensor, excluded: Tensor, mine: Tensor, *, scale: float, symmetric: bool) -> Tensor:
    """Multiple-negatives ranking: cross-entropy of each pair against all skills, and back against all requests.

    Henderson et al., 2017, arXiv 1705.00652. `scores` `[W·P, C]` are cosines of all processes' requests and skills;
    request i belongs to skill i. `excluded` `[W·P, C]` is true where a skill fits a request without being its pair: a
    right answer too, so it is left out of the softmax instead of being a negative. `mine` `[P]` are the rows of this
    process, over which the mean runs.
    """
    scores = (scale * scores).masked_fill(excluded, -torch.inf)
    over_skills = functional.cross_entropy(scores[mine], mine)
    if not symmetric:
        return over_skills
    over_requests = functional.cross_entropy(scores[:, : len(scores)].T[mine], mine)
    return (over_skills + over_requests) / 2


def relation_loss(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mine: Tensor, *, scale: float
) -> Tensor:
    """Kullback-Leibler divergence from the teacher's distribution over a batch's skills to the student's.

    Each is (requests `[W·P, D]`, skills `[C, D]`) of unit rows. Only similarities are compared, so the teacher's
    dimension may be another one than the student's.
    """
    (requests, skills), (told_requests, told_skills) = student, teacher
    taught = functional.log_softmax(scale * told_requests[mine] @ told_skills.T, dim=1)
    found = functional.log_softmax(scale * requests[mine] @ skills.T, dim=1)
    return functional.kl_div(found, taught, reduction="batchmean", log_target=True)


def nested(loss_of: Callable[..., Tensor], rows: Sequence[Tensor], dims: Sequence[int]) -> Tensor:
    """Mean of a loss over full rows `[…, D]` and over their first `dims` entries, made unit rows again.

    Matryoshka representation learning, Kusupati et al., 2022, arXiv 2205.13147.
    """
    cut = [[functional.normalize(each[..., :dim], dim=-1) for each in rows] for dim in dims]
    return torch.stack([loss_of(*each) for each in (rows, *cut)]).mean()


def listwise_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of the first logit of a list `[n]`, the right one, against the whole list."""
    return -functional.log_softmax(logits, dim=0)[0]


def pointwise_loss(logits: Tensor) -> Tensor:
    """Mean binary cross-entropy of a list `[n]`: the first one is right, the others are wrong."""
    return functional.binary_cross_entropy_with_logits(logits, (torch.arange(len(logits)) == 0).to(logits))
