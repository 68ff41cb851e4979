"""Arithmetic of the contrastive losses and of contrastive tension."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from embedloss.in_batch import Mask
from embedloss.similarity import matrix

TILE = 256  # rows a block of `own_match`


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


def own_match(
    own: Tensor,
    pool: Tensor,
    offset: int,
    scale: Tensor | float,
    similarity: str,
    tile: int = TILE,
    excluded: Mask | None = None,
) -> Tensor:
    """(rows,) cross-entropy of finding each row's match, pool[offset + i], among the pool.

    Beyond one block the similarities are computed again in the backward pass, so that memory is (tile x pool).

    Args:
        own: (rows, dim).
        pool: (texts, dim).
        offset: where the matches of the own rows begin.
        scale: factor on the similarities.
        similarity: cosine, dot, euclidean or manhattan.
        tile: rows a block.
        excluded: True where a text of the pool is no candidate; never the match.
    """
    if len(pool) < 2 or len(own) == 0:
        return (own * 0).sum(1) + (pool * 0).sum() + own.new_zeros(()) * scale

    def block(rows: Tensor, place: Tensor, everything: Tensor, factor: Tensor) -> Tensor:
        logits = matrix(similarity, rows, everything) * factor
        match = logits.gather(1, place[:, None])
        # Not lse(all) - match, which cancels once the match is far ahead.
        rest = logits.scatter(1, place[:, None], -math.inf)
        if excluded is not None:  # finite, so that the gradient of a row without candidates is 0 rather than NaN
            lowest = torch.finfo(rest.dtype).min / 4
            rest = rest.masked_fill(excluded(int(place[0]), int(place[-1]) + 1), lowest)
        rest = rest.logsumexp(1)
        return torch.logaddexp(torch.zeros_like(rest), rest - match[:, 0])

    factor = torch.as_tensor(scale, device=own.device)
    places = torch.arange(offset, offset + len(own), device=own.device)
    if len(own) <= tile:
        return block(own, places, pool, factor)
    tiles = zip(torch.split(own, tile), torch.split(places, tile), strict=True)
    return torch.cat([checkpoint(block, rows, place, pool, factor, use_reentrant=False) for rows, place in tiles])
