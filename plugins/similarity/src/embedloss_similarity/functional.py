"""Arithmetic of losses that compare similarities with labels, or with each other by the order of labels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from embedloss.similarity import pairwise


def angle_similarity(x: Tensor, y: Tensor) -> Tensor:
    """(rows,) |Re + Im| of the Hermitian product of unit vectors, row by row; 0 to sqrt(2), and 1 for equal rows.

    The first half of the coordinates (rows, dim) is read as real, the second as imaginary part; an odd dim gets a zero.
    """
    if x.shape[-1] % 2:
        x, y = F.pad(x, (0, 1)), F.pad(y, (0, 1))
    real, imaginary = y.chunk(2, -1)
    turned = torch.cat([real - imaginary, real + imaginary], -1)  # its product with x is Re + Im; its norm is sqrt(2) that of y
    return math.sqrt(2) * pairwise("cosine", x, turned).abs()


def _log_one_plus(exponents: Tensor) -> Tensor:
    """log(1 + sum exp), exact near 0 as well. (n,) -> scalar."""
    total = torch.logsumexp(exponents, 0)
    return torch.logaddexp(torch.zeros_like(total), total)


def cosent_of_two(low: Tensor, high: Tensor) -> Tensor:
    """`cosent` where every score of `high` (n,) should exceed every score of `low` (m,): the double sum factorises, O(n + m).

    0 where either is empty.
    """
    connected = (low * 0).sum() + (high * 0).sum()
    if not len(low) or not len(high):
        return connected
    return _log_one_plus((torch.logsumexp(low, 0) + torch.logsumexp(-high, 0))[None]) + connected


def cosent(scores: Tensor, labels: Tensor) -> Tensor:
    """log(1 + sum over pairs (i, j) with labels_i > labels_j of exp(scores_j - scores_i)), in O(n log n).

    Args:
        scores: (n,), scaled already.
        labels: (n,) finite; only their order matters, equal labels make no pair.

    Returns:
        A scalar; 0 with gradient 0 where no labels differ.
    """
    connected = (scores * 0).sum()  # keeps a NaN that no pair would touch, and a batch without pairs in the graph
    if not len(labels):
        return connected
    lowest, highest = labels == labels.min(), labels == labels.max()
    if bool((lowest | highest).all()):
        return connected if bool(lowest.all()) else cosent_of_two(scores[lowest], scores[highest])
    ordered, order = labels.sort()
    scores = scores[order]
    lower = torch.searchsorted(ordered, ordered)  # rows with a strictly smaller label
    below = torch.logcumsumexp(scores, 0)  # of all scores up to and with this one
    some = lower > 0
    return _log_one_plus(below[lower[some] - 1] - scores[some]) + connected
