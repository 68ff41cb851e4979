"""Arithmetic of the distillation losses: vectors, scores, margins and distributions of a teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from embedloss.linear import project as project
from embedloss.similarity import pairwise_distance

DISTANCES = ("cosine", "l2", "mse")


def embedding_distance(student: Tensor, teacher: Tensor, distance: str) -> Tensor:
    """(texts,) distances of (texts, dim) vectors: "cosine" 1 - cosine, "l2" Euclidean, "mse" mean of squared differences."""
    if distance == "mse":
        return (student - teacher).square().mean(1)
    return pairwise_distance("euclidean" if distance == "l2" else "cosine", student, teacher)


def squared_error(scores: Tensor, wanted: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of (score - wanted)^2 where the mask is True, and the number of such places. All (rows, candidates)."""
    return torch.where(mask, scores - wanted, 0).square().sum(), mask.sum()


def margin_mse(scores: Tensor, margins: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of ((positive's score - negative's score) - margin)^2, signed, over all negatives, and their number.

    Args:
        scores: (rows, 1 + negatives), the positive first.
        margins: (rows, negatives).
        mask: (rows, 1 + negatives), True where there is a text; a row without positive has no margins.
    """
    return squared_error(scores[:, :1] - scores[:, 1:], margins, mask[:, 1:] & mask[:, :1])


def kl_divergence(
    scores: Tensor, teacher: Tensor, mask: Tensor, student_temperature: float, teacher_temperature: float
) -> tuple[Tensor, Tensor]:
    """T_s^2 * KL(softmax(teacher / T_t) || softmax(scores / T_s)), summed over rows, and the number of rows with candidates.

    Args:
        scores: (rows, candidates).
        teacher: (rows, candidates); -inf gives a candidate the target probability 0. At least one finite score a row.
        mask: (rows, candidates), True where there is a candidate; others take part in neither softmax.
    """
    some = mask.any(1)
    scores, teacher, mask = scores[some], teacher[some], mask[some]
    log_p = (teacher.masked_fill(~mask, -math.inf) / teacher_temperature).log_softmax(1)
    log_q = (scores.masked_fill(~mask, -math.inf) / student_temperature).log_softmax(1).masked_fill(~mask, 0)
    p = log_p.exp()
    terms = p * (log_p.masked_fill(p == 0, 0) - log_q)  # 0 log 0 is 0; a NaN in log_q still shows
    return terms.sum() * student_temperature**2, some.sum()
