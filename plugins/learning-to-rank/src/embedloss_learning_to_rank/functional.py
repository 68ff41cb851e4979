"""Arithmetic of the learning-to-rank losses. Scores, grades and mask are (lists, documents); the mask is True where there is
a document, and whatever stands elsewhere has neither influence nor gradient. Every function returns a sum over items and the
number of items; the losses divide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from embedloss.autograd import with_gradients

SCHEMES = ("none", "ndcg-loss1", "ndcg-loss2", "lambdarank", "ndcg-loss2++")

# Pairs of documents that are looked at together: 4 MB a matrix in float32. Bounds the memory, whatever the batch.
PAIRS_AT_ONCE = 1 << 20


def _blocks(lists: int, documents: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of lists, and of documents within them, of at most `PAIRS_AT_ONCE` pairs with all documents of their lists."""
    group = max(1, PAIRS_AT_ONCE // max(documents * documents, 1))
    tile = max(1, min(documents, PAIRS_AT_ONCE // max(documents, 1)))
    for begin in range(0, lists, group):
        for first in range(0, documents, tile):
            yield slice(begin, begin + group), slice(first, min(first + tile, documents))


def _gains(grades: Tensor, mask: Tensor, k: int, eps: float) -> Tensor:
    """(2^grade - 1) / the list's highest possible DCG at k; negative grades count as 0, absent documents as gain 0."""
    raw = (torch.exp2(grades.clamp(min=0)) - 1) * mask
    place = torch.arange(1, grades.shape[1] + 1, device=grades.device, dtype=grades.dtype)
    best = raw.sort(1, descending=True).values[:, :k] / torch.log2(1 + place[:k])
    return raw / best.sum(1, keepdim=True).clamp(min=eps)


def lambda_weights(scheme: str, gains: Tensor, own: slice, mu: float) -> Tensor | float:
    """Weights of the pairs (i, j) of documents in the order of the scores, i in the slice `own`; broadcast to
    (lists, own, documents).

    Args:
        scheme: one of `SCHEMES`.
        gains: (lists, documents), sorted by the scores.
        own: positions i.
        mu: of "ndcg-loss2++".
    """
    if scheme == "none":
        return 1.0
    place = torch.arange(1, gains.shape[1] + 1, device=gains.device, dtype=gains.dtype)
    inverse = 1 / torch.log2(1 + place)
    if scheme == "ndcg-loss1":
        return (gains * inverse)[:, own, None]
    factor: Tensor | float = 0.0
    if scheme in ("lambdarank", "ndcg-loss2++"):
        factor = (inverse[own, None] - inverse[None, :]).abs()
    if scheme in ("ndcg-loss2", "ndcg-loss2++"):
        # By distance r of two positions: 1 / D(r) - 1 / D(r + 1), and 0 for a document and itself.
        steps = torch.cat([inverse.new_zeros(1), (inverse - 1 / torch.log2(2 + place))[:-1]])
        index = torch.arange(gains.shape[1], device=gains.device)
        by_distance = steps[(index[own, None] - index[None, :]).abs()]
        factor = by_distance if scheme == "ndcg-loss2" else mu * by_distance + factor
    return factor * (gains[:, own, None] - gains[:, None, :]).abs()


def lambda_loss(
    scores: Tensor,
    grades: Tensor,
    mask: Tensor,
    scheme: str = "ndcg-loss2++",
    k: int | None = None,
    sigma: float = 1.0,
    eps: float = 1e-10,
    base: float = 2.0,
    mu: float = 10.0,
) -> tuple[Tensor, Tensor]:
    """Weighted logistic loss of pairs of documents, -w_ij log_base sigmoid(sigma (s_i - s_j)), and the number of pairs.

    A pair counts if the first document has the higher grade ("ndcg-loss1": every pair, a document with itself included) and
    one of them is among the k best scores. Equal scores keep the given order.

    Args:
        scores, grades, mask: (lists, documents).
        scheme: weights of the pairs, one of `SCHEMES`.
        k: None for all documents.
        sigma: slope of the logistic function.
        eps: lowest value of the highest possible DCG.
        base: of the logarithm.
        mu: weight of "ndcg-loss2" in "ndcg-loss2++".
    """
    lists, documents = scores.shape
    grades = grades.to(scores.dtype)
    k = documents if k is None else min(k, documents)
    with torch.no_grad():
        order = scores.masked_fill(~mask, -math.inf).sort(dim=1, descending=True, stable=True).indices
        s, y, m = (t.detach().gather(1, order) for t in (scores, grades, mask))
        s, y = s.masked_fill(~m, 0), y.masked_fill(~m, 0)
        gains = _gains(y, m, k, eps)
        top = torch.arange(documents, device=scores.device) < k
        total, gradient = s.new_zeros(()), torch.zeros_like(s)
        count = torch.zeros((), dtype=torch.int64, device=s.device)
        for rows, own in _blocks(lists, documents):
            kept = m[rows, own, None] & m[rows, None, :] & (top[own, None] | top[None, :])
            if scheme != "ndcg-loss1":
                kept &= y[rows, own, None] > y[rows, None, :]
            margin = sigma * (s[rows, own, None] - s[rows, None, :])
            weight = lambda_weights(scheme, gains[rows], own, mu)
            total += torch.where(kept, -weight * logsigmoid(margin), 0).sum()
            count += kept.sum()
            # d/ds_i; a document with itself has none, and must not leave a rounding error
            pull = torch.where(kept, weight * torch.sigmoid(-margin), 0)
            pull.diagonal(own.start, 1, 2).zero_()
            gradient[rows, own] -= pull.sum(2)
            gradient[rows] += pull.sum(1)
        unit = math.log(base)
        unsorted = torch.zeros_like(gradient).scatter_(1, order, gradient * (sigma / unit))
    return with_gradients(total / unit, (scores, unsorted)), count


def list_net(scores: Tensor, grades: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of softmax(grades) and softmax(scores), summed over lists, and the number of lists with documents.

    A grade of -inf leaves the document out of the target; the scores of all documents compete.
    """
    some = mask.any(1)
    scores, grades, mask = scores[some], grades.to(scores.dtype)[some], mask[some]
    wanted = grades.masked_fill(~mask, -math.inf).softmax(1)
    found = scores.masked_fill(~mask, -math.inf).log_softmax(1)
    return -(wanted * found.masked_fill(~mask, 0)).sum(), some.sum()


Discount = Callable[[Tensor], Tensor]


def exponential_discount(documents: Tensor, ranks: Tensor) -> Tensor:
    """2^(N - r) - 1 for lists of N documents, (lists, 1), and ranks r = 1, 2, ..., (n,); scaled down where N > 127.

    The scale cancels when the weights are divided by their sum; without it float32 overflows.
    """
    shift = (documents - 127).clamp(min=0)
    return (torch.exp2(documents - ranks - shift) - torch.exp2(-shift)).clamp(min=0)


def list_mle(
    scores: Tensor, grades: Tensor | None, mask: Tensor, discount: Discount | str | None = None
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of an order of the documents (Plackett-Luce), summed over lists, and the number of lists with
    documents. O(documents) a list by a reversed cumulative log-sum-exp.

    Args:
        scores, mask: (lists, documents).
        grades: the order is by descending grade, equal grades as given; None: the order is as given, the best first.
        discount: None: every position weighs 1. A function from ranks 1, 2, ... (documents,) to weights (documents,), or
            "default" for `exponential_discount`: weights, divided by their sum over the list's documents.
    """
    some = mask.any(1)
    if not bool(some.any()):
        return scores.new_zeros(()), some.sum()
    scores, mask = scores[some], mask[some]
    wanted = mask.to(torch.uint8) if grades is None else grades.to(scores.dtype)[some].masked_fill(~mask, -math.inf)
    order = wanted.sort(dim=1, descending=True, stable=True).indices
    s, mask = scores.gather(1, order), mask.gather(1, order)
    # The highest score cancels; -inf as padding would make NaN gradients inside logcumsumexp.
    shift = s.detach().masked_fill(~mask, -math.inf).amax(1, keepdim=True)
    s = (s - shift).masked_fill(~mask, torch.finfo(s.dtype).min)
    terms = s.flip(1).logcumsumexp(1).flip(1) - s
    if discount is not None:
        ranks = torch.arange(1, s.shape[1] + 1, device=s.device, dtype=s.dtype)
        if isinstance(discount, str):
            weights = exponential_discount(mask.sum(1, keepdim=True).to(s.dtype), ranks)
        else:
            weights = discount(ranks).to(s.dtype).expand_as(s)
        weights = weights.masked_fill(~mask, 0)
        terms = terms * (weights / (weights.sum(1, keepdim=True) + 1e-10))
    return torch.where(mask, terms, 0).sum(), some.sum()


def adr_mse(scores: Tensor, grades: Tensor, mask: Tensor, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Squared difference of true and approximate ranks over log2(1 + true rank), summed over documents, and their number.

    The true rank is 1 + the documents with a higher grade, equal grades sharing their mean rank; the approximate rank is
    1 + the sum over the other documents of sigmoid(alpha (their score - own score)).

    Args:
        scores, grades, mask: (lists, documents).
        alpha: slope, > 0.
    """
    lists, documents = scores.shape
    with torch.no_grad():
        s, y = scores.detach().masked_fill(~mask, 0), grades.to(scores.dtype).masked_fill(~mask, 0)
        total, gradient = s.new_zeros(()), torch.zeros_like(s)
        for rows, own in _blocks(lists, documents):
            there = mask[rows, None, :]
            above = ((y[rows, None, :] > y[rows, own, None]) & there).sum(2)
            equal = ((y[rows, None, :] == y[rows, own, None]) & there).sum(2)
            true = above + (equal + 1).to(s.dtype) / 2
            beaten = torch.where(there, torch.sigmoid(alpha * (s[rows, None, :] - s[rows, own, None])), 0)
            beaten.diagonal(own.start, 1, 2).zero_()
            error = (1 + beaten.sum(2) - true) * mask[rows, own]
            weight = 1 / torch.log2(1 + true)
            total += (weight * error.square()).sum()
            # beaten is 0 on the diagonal, and so is its slope
            slope = (2 * alpha) * (weight * error)[:, :, None] * beaten * (1 - beaten)
            gradient[rows, own] -= slope.sum(2)
            gradient[rows] += slope.sum(1)
    return with_gradients(total, (scores, gradient)), mask.sum()
