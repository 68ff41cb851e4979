"""Arithmetic of the triplet losses.

A mined loss is a sum of terms that are functions of distances, divided by a count. Its derivative with respect to the distances
is known as soon as the terms are, so `mined` goes over blocks of anchors, takes the gradient on the way and keeps nothing of
(rows x pool) size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from embedloss.autograd import with_gradients
from embedloss.distributed import sum_over_processes
from embedloss.similarity import pairwise_distance, unit

TILE = 256  # anchors a block: 1 MB a float32 matrix at a pool of 1,024 texts
FEW = 16  # positives a row up to which counting one after the other costs less than sorting


class Few(NamedTuple):
    """A matrix (rows, pool) with few entries a row that are not 0.

    Args:
        columns: (rows, entries), where they are.
        values: (rows, entries); those of one place add up.
    """

    columns: Tensor
    values: Tensor


class Mined(NamedTuple):
    """What a rule finds in one block of distances.

    Args:
        terms: scalar, sum of the terms.
        slopes: (rows, pool), derivative of that sum with respect to each distance.
        divisor: what the mean divides by.
        active: terms that have a gradient.
        possible: terms that could have one.
    """

    terms: Tensor
    slopes: Tensor | Few
    divisor: Tensor
    active: Tensor
    possible: Tensor


Rule = Callable[[Tensor, Tensor, Tensor], Mined]


def batch_all(d: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Mined:
    """Every triplet of a block with d(a, p) + margin > d(a, n), without forming triplets.

    A distance to a positive counts once for each negative within its reach, a distance to a negative counts (negatively) once
    for each positive that reaches it. Both numbers are ranks in a sorted row, so a block costs O(rows pool log pool).

    Args:
        d: (rows, pool) distances.
        positive: (rows, pool), True for another text of the anchor's class.
        negative: (rows, pool), True for a text of another class.
        margin: of the hinge.
    """
    reach = d + margin
    columns = _few_positives(positive)
    if columns is not None:
        nearer, reached_by = _counted(d, reach, positive, negative, columns)
    else:
        nearer = torch.searchsorted(torch.where(negative, d, math.inf).sort(1).values, reach) * positive
        reached_by = d.shape[1] - torch.searchsorted(torch.where(positive, reach, -math.inf).sort(1).values, d, right=True)
        reached_by *= negative
    slopes = (nearer - reached_by).to(d.dtype)
    active = nearer.sum()
    terms = (slopes * d).sum() + margin * active.to(d.dtype)
    return Mined(terms, slopes, active, active, (positive.sum(1) * negative.sum(1)).sum())


def _few_positives(positive: Tensor) -> list[Tensor] | None:
    """Columns (rows, 1) that together hold every positive of each row, and others where a row has fewer; None beyond `FEW`."""
    most = int(positive.sum(1).max()) if positive.numel() else 0
    return list(positive.to(torch.uint8).topk(most, dim=1).indices.T[:, :, None]) if most <= FEW else None


def _counted(d: Tensor, reach: Tensor, positive: Tensor, negative: Tensor, columns: list[Tensor]) -> tuple[Tensor, Tensor]:
    """How many negatives each positive reaches, and by how many positives each negative is reached, one positive at a time.

    With few positives a row this costs less than two sorts.
    """
    nearer, reached_by = (torch.zeros(d.shape, dtype=torch.int64, device=d.device) for _ in range(2))
    for column in columns:
        within = (d < reach.gather(1, column)) & (negative & positive.gather(1, column))
        nearer.scatter_add_(1, column, within.sum(1, keepdim=True))
        reached_by += within
    return nearer, reached_by


def batch_hard(d: Tensor, positive: Tensor, negative: Tensor, margin: float | None) -> Mined:
    """One triplet an anchor: its farthest positive and its nearest negative. Anchors that lack either do not count.

    Args:
        d: (rows, pool) distances.
        positive: (rows, pool), True for another text of the anchor's class.
        negative: (rows, pool), True for a text of another class.
        margin: of the hinge; None: softplus.
    """
    farthest, p = torch.where(positive, d, -math.inf).max(1)
    nearest, n = torch.where(negative, d, math.inf).min(1)
    valid = (farthest > -math.inf) & (nearest < math.inf)
    gap = torch.where(valid, farthest - nearest, 0)
    if margin is None:
        # Not softplus, which turns linear above 20 and is then off by 2e-9.
        terms, slope = torch.logaddexp(gap, torch.zeros_like(gap)), gap.sigmoid()
    else:
        terms, slope = torch.relu(gap + margin), (gap + margin > 0).to(d.dtype)
    slope = slope * valid
    slopes = Few(torch.stack([p, n], 1), torch.stack([slope, -slope], 1))
    return Mined((terms * valid).sum(), slopes, valid.sum(), (slope > 0).sum(), valid.sum())


def batch_semi_hard(d: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Mined:
    """One triplet a positive pair: the nearest negative strictly beyond the positive, else the farthest negative.

    Pairs whose anchor has no negative do not count. With few positives a row each looks at all negatives; else one sort a row
    serves all of them.

    Args:
        d: (rows, pool) distances.
        positive: (rows, pool), True for another text of the anchor's class.
        negative: (rows, pool), True for a text of another class.
        margin: of the hinge.
    """
    columns = _few_positives(positive)
    if columns is not None:
        return _semi_hard_each(d, positive, negative, margin, columns)
    nearest, order = torch.where(negative, d, math.inf).sort(1)
    beyond = torch.searchsorted(nearest, d, right=True)
    chosen = order.gather(1, torch.minimum(beyond, negative.sum(1, keepdim=True) - 1).clamp(min=0))
    usable = positive & negative.any(1, keepdim=True)
    gap = d - d.gather(1, chosen) + margin
    active = usable & (gap > 0)
    slopes = active.to(d.dtype)
    slopes = slopes.scatter_add(1, chosen, -slopes)
    return Mined(torch.where(usable, torch.relu(gap), 0).sum(), slopes, usable.sum(), active.sum(), usable.sum())


def _semi_hard_each(d: Tensor, positive: Tensor, negative: Tensor, margin: float, columns: list[Tensor]) -> Mined:
    """`batch_semi_hard`, one positive of each row at a time."""
    farthest, last = torch.where(negative, d, -math.inf).max(1, keepdim=True)
    any_negative = negative.any(1, keepdim=True)
    slopes, terms = torch.zeros_like(d), d.new_zeros(())
    usable, active = (torch.zeros((), dtype=torch.int64, device=d.device) for _ in range(2))
    for column in columns:
        near = d.gather(1, column)
        far, chosen = torch.where(negative & (d > near), d, math.inf).min(1, keepdim=True)
        none = far == math.inf
        far, chosen = torch.where(none, farthest, far), torch.where(none, last, chosen)
        counts = positive.gather(1, column) & any_negative
        gap = torch.where(counts, near - far + margin, 0)
        slope = (gap > 0).to(d.dtype)
        slopes.scatter_add_(1, column, slope).scatter_add_(1, chosen, -slope)
        terms += torch.relu(gap).sum()
        usable += counts.sum()
        active += (gap > 0).sum()
    return Mined(terms, slopes, usable, active, usable)


Pull = Callable[[Tensor | Few, Tensor, Tensor], None]
"""(slopes, gradient of x, gradient of y): adds to the gradients what the slopes of the distances make."""


def distances(name: str, x: Tensor, y: Tensor, itself: Tensor) -> tuple[Tensor, Pull]:
    """(n, m) distances, exact also between near duplicates, and how their gradient reaches the vectors.

    The matrix product loses the digits of Euclidean distances that are small beside the norms; a block that has such a pair is
    computed again from differences, which is right to rounding and ten times slower.

    Args:
        name: euclidean, squared-euclidean, manhattan, or cosine of unit vectors.
        x: (n, dim), without gradient.
        y: (m, dim).
        itself: (n, m), True where both are the same text; such an entry is of no use and may be imprecise.
    """
    if name == "cosine":

        def pull_products(slopes: Tensor | Few, of_x: Tensor, of_y: Tensor) -> None:
            if isinstance(slopes, Few):
                for column, value in zip(slopes.columns.T, slopes.values.T[:, :, None], strict=True):
                    of_x.addcmul_(y[column], value, value=-1)
                    of_y.index_add_(0, column, x * value, alpha=-1)
                return
            of_x.addmm_(slopes, y, alpha=-1)
            of_y.addmm_(slopes.T, x, alpha=-1)

        return 1 - x @ y.T, pull_products
    if name == "manhattan":
        return _through(lambda a, b: torch.cdist(a, b, p=1.0), x, y)
    centre = y.mean(0, keepdim=True)  # a common offset would cost digits
    a, b = x - centre, y - centre
    square = (a @ b.T).mul_(-2).add_(a.pow(2).sum(1)[:, None]).add_(b.pow(2).sum(1)).clamp_(min=0)
    d = square if name == "squared-euclidean" else square.sqrt_()
    if name == "euclidean" and bool(((d < 0.03 * d.mean(1, keepdim=True)) & ~itself).any()):
        return _through(lambda a, b: torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist"), x, y)

    def pull(slopes: Tensor | Few, of_x: Tensor, of_y: Tensor) -> None:
        if isinstance(slopes, Few):
            near = d.gather(1, slopes.columns)
            each = 2 * slopes.values if name == "squared-euclidean" else (slopes.values / near).masked_fill_(near == 0, 0.0)
            for column, value in zip(slopes.columns.T, each.T[:, :, None], strict=True):
                part = b[column].sub_(a).mul_(value)
                of_x.sub_(part)
                of_y.index_add_(0, column, part)
            return
        each = 2 * slopes if name == "squared-euclidean" else (slopes / d).masked_fill_(d == 0, 0.0)
        of_x.addcmul_(a, each.sum(1)[:, None]).addmm_(each, b, alpha=-1)
        of_y.addcmul_(b, each.sum(0)[:, None]).addmm_(each.T, a, alpha=-1)

    return d, pull


def _through(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Pull]:
    leaves = x.detach().requires_grad_(), y.detach().requires_grad_()
    with torch.enable_grad():
        d = function(*leaves)

    def pull(slopes: Tensor | Few, of_x: Tensor, of_y: Tensor) -> None:
        if isinstance(slopes, Few):
            slopes = torch.zeros_like(d).scatter_add_(1, slopes.columns, slopes.values)
        for gradient, d_leaf in zip((of_x, of_y), torch.autograd.grad(d, leaves, slopes), strict=True):
            gradient += d_leaf

    return d.detach(), pull


def mined(
    rule: Rule,
    own: Tensor,
    labels: Tensor,
    distance: str,
    *,
    pool: Tensor | None = None,
    pool_labels: Tensor | None = None,
    offset: int = 0,
    processes: int = 1,
    tile: int = TILE,
) -> tuple[Tensor, Tensor]:
    """A loss of triplets that `rule` finds among the texts of a batch, in O(tile x pool) memory.

    Args:
        rule: `batch_all`, `batch_hard` or `batch_semi_hard` with its margin bound.
        own: (rows, dim), the anchors.
        labels: (rows,), their classes; only equality matters.
        distance: euclidean, squared-euclidean, manhattan or cosine.
        pool: (texts, dim) positives and negatives, which include the anchors; None: the anchors.
        pool_labels: (texts,), their classes; None: those of the anchors.
        offset: where the anchors begin in the pool.
        processes: how many compute the loss together, each of its own anchors, so that their mean is the loss of the joint
            batch.
        tile: anchors a block.

    Returns:
        The scalar loss, exactly 0 with gradient 0 where there is no valid triplet; and the share of possible terms that have a
        gradient.
    """
    if distance == "cosine":
        own, pool = unit(own), None if pool is None or pool is own else unit(pool)
    everything = own if pool is None else pool
    classes = labels if pool_labels is None else pool_labels
    wanted = torch.is_grad_enabled() and (own.requires_grad or everything.requires_grad)
    x, y = own.detach(), everything.detach()
    gradients = {everything: torch.zeros_like(y), own: torch.zeros_like(x)} if wanted else {}
    # Zero times the vectors, so that a vector that is not finite makes the loss so even if it is in no triplet.
    terms = (x * 0).sum()
    counts = torch.zeros(3, dtype=torch.int64, device=x.device)
    places = torch.arange(len(y), device=x.device)
    with torch.no_grad():
        for begin in range(0, len(x), tile):
            rows = slice(begin, begin + tile)
            itself = places[offset + begin : offset + min(begin + tile, len(x)), None] == places
            same = labels[rows, None] == classes
            d, pull = distances(distance, x[rows], y, itself)
            found = rule(d, same & ~itself, ~same)
            terms += found.terms
            counts += torch.stack([found.divisor, found.active, found.possible])
            if wanted:
                pull(found.slopes, gradients[own][rows], gradients[everything])
    divisor, active, possible = counts if processes == 1 else sum_over_processes(counts)
    factor = processes / divisor.clamp(min=1).to(x.dtype)
    value = terms * factor
    if wanted:
        value = with_gradients(value, *((tensor, g.mul_(factor)) for tensor, g in gradients.items()))
    return value, active / possible.clamp(min=1)


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, distance: str) -> Tensor:
    """(rows,) terms max(d(anchor, positive) - d(anchor, negative) + margin, 0).

    Args:
        anchor: (rows, dim).
        positive: (rows, dim).
        negative: (rows, dim).
        margin: of the hinge.
        distance: euclidean, squared-euclidean, manhattan or cosine.
    """
    near, far = pairwise_distance(distance, anchor, positive), pairwise_distance(distance, anchor, negative)
    return torch.relu(near - far + margin)
