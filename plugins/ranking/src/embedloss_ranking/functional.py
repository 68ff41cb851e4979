"""In-batch softmax losses as pure functions.

Every loss here asks each row to score its positive above a set of other candidates, described by `Block`s for `contrast`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from embedloss.contrast import ALL_ROWS, Block, Scored, contrast, contrast_prefixes, nan_unless_finite
from embedloss.in_batch import Mask, Masks, any_of
from embedloss.similarity import unit

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
HARDNESS_MODES = ("in_batch_negatives", "hard_negatives", "all_negatives")


def multiple_negatives_ranking(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    negative_rows: Tensor | None = None,
    *,
    scale: float | Tensor = 20.0,
    similarity: str = "cosine",
    directions: Sequence[str] = ("query_to_doc",),
    per_direction: bool = False,
    hardness_mode: str | None = None,
    hardness_strength: float = 0.0,
    own_negatives_count: bool = True,
    masks: Masks = lambda left, right: None,
    shared: Mask | None = None,
    scored: Scored = ALL_ROWS,
    tile: int | None = None,
    prefixes: tuple[Sequence[int], Sequence[float]] | None = None,
) -> tuple[Tensor, ...]:
    """InfoNCE over the batch (van den Oord et al. 2018, 1807.03748; Henderson et al. 2017, 1705.00652).

    Args:
        anchors: (rows, dim), of all processes.
        positives: (rows, dim).
        negatives: (n, dim) hard negatives of any rows.
        negative_rows: (n,) the row that each hard negative belongs to.
        scale: inverse temperature.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        directions: which candidate sets are used: `DIRECTIONS`, or "positive_to_positive" (doc_to_doc without hard negatives).
        per_direction: one softmax a direction, averaged, instead of one over all of them.
        hardness_mode: which logits of query_to_doc get `hardness_strength` times their similarity on top, as a constant.
        hardness_strength: see there.
        own_negatives_count: whether a row's own hard negatives are among its candidates in query_to_doc.
        masks: what is no candidate.
        shared: (rows, rows) which positives a row has, its own included; its score is then the logsumexp of theirs.
        scored: the rows that have a loss, and what theirs count.
        tile: see `contrast`.
        prefixes: ascending sizes to which all texts are cut and then normalised, and their weights.

    Returns:
        The loss and the number of scored rows that had a negative. With `prefixes`: the weighted sum of the losses, the losses
        and these numbers, both (sizes,).

    Raises:
        ValueError: `prefixes` with a distance or a scale that is trained.
    """
    texts = {"anchor": anchors, "positive": positives} | ({} if negatives is None else {"negative": negatives})

    def own(start: int, stop: int) -> Tensor:
        assert negative_rows is not None
        return torch.arange(start, stop, device=negative_rows.device)[:, None] == negative_rows[None]

    def of_others(start: int, stop: int) -> Tensor:
        return ~own(start, stop)

    def all_texts(start: int, stop: int) -> Tensor:
        return torch.ones((), dtype=torch.bool, device=anchors.device)

    boosts: dict[str | None, tuple[Mask | None, Mask | None]] = {  # of positives (of other rows), of hard negatives
        "in_batch_negatives": (all_texts, of_others),
        "hard_negatives": (None, own),
        "all_negatives": (all_texts, all_texts),
    }
    boost, hard_boost = boosts.get(hardness_mode, (None, None))
    not_own: dict[str, Mask | None] = {"query_to_doc": None if own_negatives_count else own, "doc_to_doc": own}
    blocks: list[Block] = []
    for i, direction in enumerate(dict.fromkeys(("query_to_doc", *directions))):
        group = i if per_direction else 0
        left = "anchor" if direction.startswith("query") else "positive"
        if direction == "query_to_doc":
            blocks.append(Block(left, "positive", group, "positive", masks(left, "positive"), boost, shared))
        elif direction == "doc_to_query":  # the positive is here once more; in a joint softmax it counts as one of the others
            diagonal: Literal["positive", "candidate"] = "positive" if per_direction else "candidate"
            blocks.append(Block(left, "anchor", group, diagonal, masks(left, "anchor")))
        else:
            blocks.append(Block(left, left, group, "excluded", masks(left, left)))
        if negatives is not None and direction in not_own:
            excluded = any_of(not_own[direction], masks(left, "negative"))
            blocks.append(Block(left, "negative", group, "candidate", excluded, hard_boost if left == "anchor" else None))
    strength = hardness_strength if hardness_mode else 0.0
    if prefixes is None:
        return contrast(texts, blocks, scale=scale, strength=strength, similarity=similarity, scored=scored, tile=tile)
    if isinstance(scale, Tensor) or similarity not in ("cosine", "dot"):
        raise ValueError("prefixes are compared by cosine, with a scale that is a number")
    return contrast_prefixes(texts, blocks, *prefixes, scale=scale, strength=strength, scored=scored, tile=tile)


def listwise_softmax(
    scores: Tensor, mask: Tensor, divisor: float | None = None, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of the first candidate of every row.

    Args:
        scores: (rows, candidates) logits; undefined where the mask is False.
        mask: (rows, candidates), True where there is a candidate; the first always is.
        divisor: what the sum over rows is divided by; their number if None.
        weights: (rows,) what each row's loss is multiplied by.

    Returns:
        The loss and the number of rows that had another candidate.
    """
    others = mask[:, 1:]
    if not others.any():
        return scores.masked_fill(~mask, 0.0).sum() * 0, scores.new_zeros(())
    floor = torch.finfo(scores.dtype).min / 4  # finite, so that the gradient of an empty row is 0 rather than NaN
    gap = scores[:, 1:].masked_fill(~others, floor).logsumexp(1) - scores[:, 0]
    rows = torch.logaddexp(gap, torch.zeros_like(gap))
    rows = rows if weights is None else rows * weights.to(rows)
    total = rows.sum() / max(len(scores) if divisor is None else divisor, 1e-9)
    return total, others.any(1).sum().to(scores.dtype)


def mega_batch_margin(
    anchors: Tensor,
    positives: Tensor,
    *,
    positive_margin: float = 0.8,
    negative_margin: float = 0.3,
    excluded: Mask | None = None,
    scored: Scored = ALL_ROWS,
    tile: int = 256,
) -> tuple[Tensor, Tensor]:
    """Hinges on the cosine of the positive and of the hardest other document (Wieting and Gimpel 2018, P18-1042).

    Args:
        anchors: (rows, dim), of all processes.
        positives: (rows, dim).
        positive_margin: the positive's cosine should be at least this.
        negative_margin: the hardest other document's cosine should be at most this.
        excluded: True where a document is not looked at.
        scored: the rows that have a loss, and what theirs count.
        tile: rows of a tile.

    Returns:
        The loss and the number of scored rows with a hinge above 0.
    """
    anchors, positives = unit(anchors), unit(positives)
    begin, end = scored.span(len(anchors))
    places = [torch.zeros(0, dtype=torch.int64, device=anchors.device)]
    alone = [torch.zeros(0, dtype=torch.bool, device=anchors.device)]
    with torch.no_grad():
        for start in range(begin, end, tile):
            stop = min(start + tile, end)
            cosines = anchors[start:stop] @ positives.T
            cosines.diagonal(start).fill_(-math.inf)
            if excluded is not None:
                cosines.masked_fill_(excluded(start, stop), -math.inf)
            hardest, place = cosines.max(1)
            places.append(place)
            alone.append(hardest == -math.inf)
    own = anchors[begin:end]
    short = positive_margin - (own * positives[begin:end]).sum(1)
    over = ((own * positives[torch.cat(places)]).sum(1) - negative_margin).masked_fill(torch.cat(alone), -math.inf)
    rows = short.relu() + over.relu()
    rows = rows if scored.weights is None else rows * scored.weights.to(rows)
    loss = rows.sum() * scored.share(len(anchors))
    return loss + nan_unless_finite(anchors, positives), ((short > 0) | (over > 0)).sum()
