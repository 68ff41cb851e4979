"""Arithmetic of the contrastive losses and of contrastive tension."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def contrastive(distances: Tensor, same: Tensor, margin: float) -> Tensor:
    """(rows,) terms: half the squared distance of a pair that belongs together, half the squared lack of margin of another.

    Args:
        distances: (rows,).
        same: (rows,) bool, True for pairs that belong together.
        margin: distance at which other pairs stop to matter, > 0.
    """
    return 0.5 * torch.where(same, distances, torch.relu(margin - distances)).pow(2)


def online_contrastive(distances: Tensor, same: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """(rows,) terms of hard pairs, 0 for others, and which of them have a gradient (bool).

    A pair that belongs together is hard if it is farther apart than the nearest other pair; another pair is hard if it is
    nearer than the farthest pair that belongs together. Where all pairs are of one kind, its mean distance is the threshold.

    Args:
        distances: (rows,).
        same: (rows,) bool, True for pairs that belong together.
        margin: distance at which other pairs stop to matter, > 0.
    """
    d = distances.detach()
    mean = d.mean() if len(d) else d.sum()
    nearest_other = torch.where(same, math.inf, d).amin() if not bool(same.all()) else mean
    farthest_same = torch.where(same, d, -math.inf).amax() if bool(same.any()) else mean
    hard = torch.where(same, d > nearest_other, d < farthest_same)
    reach = torch.where(same, distances, torch.relu(margin - distances))
    # Both comparisons are False for NaN; adding zero times the distance keeps it.
    return torch.where(hard, reach.pow(2), 0) + distances * 0, hard & (reach.detach() > 0)


def contrastive_tension(scores: Tensor, same: Tensor) -> Tensor:
    """Binary cross-entropy of logits, term by term: log(1 + exp(-score)) for equal texts, log(1 + exp(score)) for others.

    Args:
        scores: inner products, any shape.
        same: bool of that shape, True for equal texts.
    """
    return torch.logaddexp(torch.zeros_like(scores), torch.where(same, -scores, scores))


def draw_partners(texts: int, partners: int, generator: torch.Generator) -> Tensor:
    """(texts, partners) for every text numbers of other texts, at random with replacement; (texts, 0) if there is no other.

    Args:
        texts: how many there are.
        partners: how many each text gets.
        generator: on the CPU.
    """
    if texts < 2:
        return torch.empty(texts, 0, dtype=torch.int64)
    away = torch.randint(1, texts, (texts, partners), generator=generator)
    return (torch.arange(texts)[:, None] + away) % texts
