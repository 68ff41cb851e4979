"""In-batch softmax losses as pure functions.

Every loss here asks each row to score its positive above a set of other candidates. The set is described by `Block`s, and
one kernel (`contrast`) evaluates any list of them: over row blocks, with the gradient taken in the forward pass, so that
no (rows x pool) matrix is ever kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from embedloss.similarity import matrix, unit

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
HARDNESS_MODES = ("in_batch_negatives", "hard_negatives", "all_negatives")
TILE_ELEMENTS = 2**20  # of one (tile x columns) matrix

Mask = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Block:
    """A block of candidates: for each row i, the similarities of `left[i]` with every text of `right`.

    Args:
        left: index of a tensor with one text a row.
        right: index of a tensor.
        group: blocks of one group share a softmax; the row's loss is the mean over groups.
        diagonal: what `right[i]` is for row i: the "positive", "excluded", or a "candidate" like any other (also where
            `right` is not aligned with the rows).
        excluded: (begin, end) -> bool (end - begin, columns), True where a text is no candidate of that row.
        boosted: the same shape, True where the logit gets `strength` times the (constant) similarity on top.
    """

    left: int
    right: int
    group: int = 0
    diagonal: Literal["positive", "excluded", "candidate"] = "candidate"
    excluded: Mask | None = None
    boosted: Mask | None = None


@dataclass(frozen=True)
class _Plan:
    blocks: tuple[Block, ...]
    strength: float
    begin: int
    end: int
    divisor: float
    tile: int
    wanted: tuple[bool, ...]  # scale, then tensors

    @property
    def groups(self) -> int:
        return 1 + max(block.group for block in self.blocks)


def contrast(
    tensors: Sequence[Tensor],
    blocks: Sequence[Block],
    *,
    scale: float | Tensor = 1.0,
    strength: float = 0.0,
    similarity: Literal["dot", "euclidean", "manhattan"] = "dot",
    begin: int = 0,
    end: int | None = None,
    divisor: float | None = None,
    tile: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of each row's positive against the candidates of its blocks.

    The first block holds the positive on its diagonal. Per group, the row's loss is `softplus(lse(others) - positive)`,
    which is `lse(all) - positive` without its cancellation; a group without other candidates gives 0.

    Args:
        tensors: (texts, dim) each, float32 or float64. Give unit rows for cosine similarity.
        blocks: the candidates.
        scale: factor on similarities; a tensor receives its gradient.
        strength: factor of the boost.
        similarity: "dot" is tiled; the others hold the whole matrix in the graph.
        begin: first row that is scored.
        end: the row after the last one; all rows if None.
        divisor: what the sum over scored rows is divided by; their number if None.
        tile: rows of a tile; chosen from the number of columns if None.

    Returns:
        The loss (scalar) and the number of scored rows that had any candidate beside the positive (no gradient).
    """
    end = len(tensors[blocks[0].left]) if end is None else end
    divisor = max(float(end - begin if divisor is None else divisor), 1e-9)
    columns = max((len(tensors[block.right]) for block in blocks), default=1)
    tile = tile or min(max(TILE_ELEMENTS // max(columns, 1), 32), 1024)
    factor = torch.as_tensor(scale, dtype=tensors[0].dtype, device=tensors[0].device)
    wanted = tuple(t.requires_grad and torch.is_grad_enabled() for t in (factor, *tensors))
    kept = tuple(block for block in blocks if len(tensors[block.right]))
    if end <= begin or not kept:
        return torch.stack([t.sum() * 0 for t in (factor, *tensors)]).sum(), factor.new_zeros(())
    plan = _Plan(kept, strength, begin, end, divisor, tile, wanted)
    if similarity == "dot":
        loss, active = _Tiled.apply(plan, factor, *tensors)  # type: ignore[no-untyped-call]
    else:
        loss, active = _dense(plan, similarity, factor, tensors)
    return loss + nan_unless_finite(*tensors), active


def nan_unless_finite(*tensors: Tensor) -> Tensor:
    """0, or NaN where any entry is not finite: a mask must not hide what went wrong (no gradient)."""
    finite = torch.stack([torch.isfinite(t.detach()).all() for t in tensors]).all()
    return torch.where(finite, 0.0, math.nan).to(tensors[0].dtype)


def _logits(plan: _Plan, block: Block, similarities: Tensor, scale: Tensor, start: int, stop: int) -> Tensor:
    """Scaled and boosted, nothing excluded yet."""
    logits = similarities * scale
    if block.boosted is not None and plan.strength:
        logits = logits + plan.strength * similarities.detach() * block.boosted(start, stop)
    return logits


@once_differentiable  # type: ignore[untyped-decorator]
def _scaled(_: Any, upstream: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
    return tuple(upstream * g for g in gradients)


def _times(upstream: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
    """The saved gradients times the upstream one; differentiating the result once more is an error."""
    if torch.is_grad_enabled():  # create_graph: the saved gradients would pass for constants, a silent mistake
        upstream = upstream.detach().requires_grad_()
    scaled = _scaled(None, upstream, *gradients)
    return scaled if isinstance(scaled, tuple) else (scaled,)


class _Tiled(torch.autograd.Function):
    """Dot products over row blocks. Keeps only the gradients that somebody needs, never a graph over a tile."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, scale: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        gradients = [torch.zeros_like(t) if w else None for t, w in zip((scale, *tensors), plan.wanted, strict=True)]
        total, active = scale.new_zeros(()), scale.new_zeros(())
        share = 1 / (plan.groups * plan.divisor)
        for start in range(plan.begin, plan.end, plan.tile):
            stop = min(start + plan.tile, plan.end)
            similarities: list[Tensor | None] = []
            logits: list[Tensor] = []
            positive = scale
            for block in plan.blocks:
                products = tensors[block.left][start:stop] @ tensors[block.right].T
                if not logits:
                    positive = products.diagonal(start) * scale  # never boosted
                logits.append(_logits(plan, block, products, scale, start, stop))
                similarities.append(products if plan.wanted[0] else None)
            lses: list[list[Tensor]] = [[] for _ in range(plan.groups)]
            for block, z in zip(plan.blocks, logits, strict=True):
                if block.diagonal != "candidate":
                    z.diagonal(start).fill_(-math.inf)
                if block.excluded is not None:
                    z.masked_fill_(block.excluded(start, stop), -math.inf)
                lses[block.group].append(z.logsumexp(1))
            gap = torch.stack([torch.stack(group).logsumexp(0) - positive for group in lses])
            rows = torch.logaddexp(gap, torch.zeros_like(gap))
            total += rows.sum() * share
            active += (gap != -math.inf).any(0).sum()
            if not any(plan.wanted):
                continue
            for block, z, products_ in zip(plan.blocks, logits, similarities, strict=True):
                g = z.sub_((positive + rows[block.group])[:, None]).exp_()
                if block.diagonal == "positive":
                    g.diagonal(start).copy_(-gap[block.group].sigmoid())
                g *= share
                if products_ is not None and gradients[0] is not None:
                    gradients[0] += (g * products_).sum()
                g *= scale
                left, right = gradients[1 + block.left], gradients[1 + block.right]
                if left is not None:
                    left[start:stop].addmm_(g, tensors[block.right])
                if right is not None:
                    right.addmm_(g.T, tensors[block.left][start:stop])
        ctx.wanted = plan.wanted
        ctx.save_for_backward(*(g for g in gradients if g is not None))
        ctx.mark_non_differentiable(active)
        return total, active

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(_times(upstream, *ctx.saved_tensors))
        return None, *(next(saved) if wanted else None for wanted in ctx.wanted)


def _dense(plan: _Plan, similarity: str, scale: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The same by autograd over whole matrices, for similarities that are no matrix product."""
    start, stop = plan.begin, plan.end
    floor = torch.finfo(scale.dtype).min / 4  # finite, so that the gradient of an empty set is 0 rather than NaN
    positive = scale.new_zeros(())
    others: list[list[Tensor]] = [[] for _ in range(plan.groups)]
    some = torch.zeros(stop - start, dtype=torch.bool, device=scale.device)
    for k, block in enumerate(plan.blocks):
        products = matrix(similarity, tensors[block.left][start:stop], tensors[block.right])
        logits = _logits(plan, block, products, scale, start, stop)
        if k == 0:
            positive = products.diagonal(start) * scale  # never boosted
        excluded = torch.zeros_like(logits, dtype=torch.bool)
        if block.diagonal != "candidate":
            excluded.diagonal(start).fill_(True)
        if block.excluded is not None:
            excluded |= block.excluded(start, stop)
        some |= ~excluded.all(1)
        others[block.group].append(logits.masked_fill(excluded, floor))
    gap = torch.stack([torch.cat(group, 1).logsumexp(1) - positive for group in others])
    total = torch.logaddexp(gap, torch.zeros_like(gap)).sum() / (plan.groups * plan.divisor)
    return total, some.sum().to(scale.dtype)


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
    anchor_ids: Tensor | None = None,
    positive_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    begin: int = 0,
    end: int | None = None,
    divisor: float | None = None,
    tile: int | None = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE over the batch (van den Oord et al. 2018, 1807.03748; Henderson et al. 2017, 1705.00652).

    Args:
        anchors: (rows, dim), of all processes.
        positives: (rows, dim).
        negatives: (n, dim) hard negatives of any rows.
        negative_rows: (n,) the row that each hard negative belongs to.
        scale: inverse temperature.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        directions: which candidate sets are used; see `DIRECTIONS`.
        per_direction: one softmax a direction, averaged, instead of one over all of them.
        hardness_mode: which logits of query_to_doc get `hardness_strength` times their similarity on top, as a constant.
        hardness_strength: see there.
        own_negatives_count: whether a row's own hard negatives are among its candidates in query_to_doc.
        anchor_ids: (rows,) equal for equal texts. With ids, equal texts are no negatives of each other.
        positive_ids: (rows,).
        negative_ids: (n,).
        begin: first row that is scored (this process's first).
        end: the row after the last one.
        divisor: see `contrast`.
        tile: see `contrast`.

    Returns:
        The loss and the number of scored rows that had a negative.
    """
    tensors = [anchors, positives] + ([] if negatives is None else [negatives])
    if similarity == "cosine":
        similarity, tensors = "dot", [unit(t) for t in tensors]
    ids = [anchor_ids, positive_ids, negative_ids]

    def same_text(left: int, right: int) -> Mask | None:
        a, b = ids[left], ids[right]
        return None if a is None or b is None else lambda start, stop: a[start:stop, None] == b[None]

    def same_text_of_others(start: int, stop: int) -> Tensor:
        same = anchor_ids[start:stop, None] == anchor_ids[None]  # type: ignore[index]
        same.diagonal(start).fill_(False)
        return same

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
    blocks: list[Block] = []
    for group, direction in enumerate(dict.fromkeys(("query_to_doc", *directions))):
        group = group if per_direction else 0
        if direction == "query_to_doc":
            blocks.append(Block(0, 1, group, "positive", same_text(1, 1), boost))
            if negatives is not None:
                drop = any_of(None if own_negatives_count else own, same_text(1, 2))
                blocks.append(Block(0, 2, group, "candidate", drop, hard_boost))
        elif direction == "query_to_query":
            blocks.append(Block(0, 0, group, "excluded", same_text(0, 0)))
        elif direction == "doc_to_query":  # the positive is here once more; in a joint softmax it counts as one of the others
            drop = None if anchor_ids is None else same_text_of_others
            blocks.append(Block(1, 0, group, "positive" if per_direction else "candidate", drop))
        else:
            blocks.append(Block(1, 1, group, "excluded", same_text(1, 1)))
            if negatives is not None:
                blocks.append(Block(1, 2, group, "candidate", any_of(own, same_text(1, 2))))
    return contrast(
        tensors,
        blocks,
        scale=scale,
        strength=hardness_strength if hardness_mode else 0.0,
        similarity=similarity,  # type: ignore[arg-type]
        begin=begin,
        end=end,
        divisor=divisor,
        tile=tile,
    )


def any_of(first: Mask | None, second: Mask | None) -> Mask | None:
    """The union of two masks, either of which may be missing."""
    if first is None or second is None:
        return first or second
    return lambda start, stop: first(start, stop) | second(start, stop)


def listwise_softmax(scores: Tensor, mask: Tensor, divisor: float | None = None) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of the first candidate of every row.

    Args:
        scores: (rows, candidates) logits; undefined where the mask is False.
        mask: (rows, candidates), True where there is a candidate; the first always is.
        divisor: what the sum over rows is divided by; their number if None.

    Returns:
        The loss and the number of rows that had another candidate.
    """
    others = mask[:, 1:]
    if not others.any():
        return scores.masked_fill(~mask, 0.0).sum() * 0, scores.new_zeros(())
    floor = torch.finfo(scores.dtype).min / 4  # finite, so that the gradient of an empty row is 0 rather than NaN
    gap = scores[:, 1:].masked_fill(~others, floor).logsumexp(1) - scores[:, 0]
    total = torch.logaddexp(gap, torch.zeros_like(gap)).sum() / max(len(scores) if divisor is None else divisor, 1e-9)
    return total, others.any(1).sum().to(scores.dtype)


def guided_ranking(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor | None,
    guide_anchors: Tensor,
    guide_positives: Tensor,
    guide_negatives: Tensor | None,
    *,
    temperature: float | Tensor = 0.01,
    margin: float = 0.0,
    relative: bool = False,
    contrast_anchors: bool = True,
    contrast_positives: bool = True,
    begin: int = 0,
    end: int | None = None,
    divisor: float | None = None,
    tile: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax over the batch without the candidates that a guide finds closer than the positive (GISTEmbed, 2402.16829).

    A candidate is dropped if the guide's cosine exceeds that of the row's positive, less the margin, by more than rounding:
    a second copy of the positive is no closer than the positive.

    Args:
        anchors: (rows, dim), of all processes.
        positives: (rows, dim).
        negatives: (n, dim) hard negatives of any rows, or None.
        guide_anchors: (rows, guide dim), no gradient.
        guide_positives: (rows, guide dim).
        guide_negatives: (n, guide dim), or None.
        temperature: what cosines are divided by.
        margin: a larger one drops more.
        relative: the margin is a share of the positive's (absolute) cosine.
        contrast_anchors: other rows' anchors are candidates, judged against the row's anchor.
        contrast_positives: other rows' positives are candidates once more, compared with and judged against the positive.
        begin: first row that is scored.
        end: the row after the last one.
        divisor: see `contrast`.
        tile: see `contrast`.

    Returns:
        The loss and the number of scored rows that kept a candidate beside the positive.
    """
    tensors = [unit(t) for t in (anchors, positives, negatives) if t is not None]
    guides = [unit(t.detach()) for t in (guide_anchors, guide_positives, guide_negatives) if t is not None]
    threshold = (guides[0] * guides[1]).sum(1)
    threshold = threshold - (threshold.abs() * margin if relative else margin) + 16 * torch.finfo(threshold.dtype).eps

    def closer(left: int, right: int) -> Mask:
        return lambda start, stop: guides[left][start:stop] @ guides[right].T > threshold[start:stop, None]

    blocks = [Block(0, 1, diagonal="positive", excluded=closer(0, 1))]
    if contrast_anchors:
        blocks.append(Block(0, 0, diagonal="excluded", excluded=closer(0, 0)))
    if contrast_positives:
        blocks.append(Block(1, 1, diagonal="excluded", excluded=closer(1, 1)))
    if negatives is not None:
        blocks.append(Block(0, 2, excluded=closer(0, 2)))
    loss, active = contrast(tensors, blocks, scale=1 / temperature, begin=begin, end=end, divisor=divisor, tile=tile)
    return loss + nan_unless_finite(*guides).to(loss.dtype), active


class _HardestInBatch(torch.autograd.Function):
    """Two hinges a row over row blocks; the gradient touches the row's positive and its hardest other document."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        positives: Tensor,
        margins: tuple[float, float],
        span: tuple[int, int],
        divisor: float,
        tile: int,
        wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        total, active = anchors.new_zeros(()), anchors.new_zeros(())
        gradients = [torch.zeros_like(anchors), torch.zeros_like(positives)] if wanted else []
        for start in range(span[0], span[1], tile):
            rows = slice(start, min(start + tile, span[1]))
            cosines = anchors[rows] @ positives.T
            positive = cosines.diagonal(start).clone()
            cosines.diagonal(start).fill_(-math.inf)
            hardest, place = cosines.max(1)
            short, over = margins[0] - positive, hardest - margins[1]
            total += (short.relu() + over.relu()).sum() / divisor
            active += ((short > 0) | (over > 0)).sum()
            if wanted:
                pull, push = ((hinge > 0).to(anchors.dtype)[:, None] / divisor for hinge in (short, over))
                gradients[0][rows] = push * positives[place] - pull * positives[rows]
                gradients[1][rows] -= pull * anchors[rows]
                gradients[1].index_add_(0, place, push * anchors[rows])
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(active)
        return total, active

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *_times(upstream, *ctx.saved_tensors), None, None, None, None, None


def mega_batch_margin(
    anchors: Tensor,
    positives: Tensor,
    *,
    positive_margin: float = 0.8,
    negative_margin: float = 0.3,
    begin: int = 0,
    end: int | None = None,
    divisor: float | None = None,
    tile: int = 256,
) -> tuple[Tensor, Tensor]:
    """Hinges on the cosine of the positive and of the hardest other document (Wieting and Gimpel 2018, P18-1042).

    Args:
        anchors: (rows, dim), of all processes.
        positives: (rows, dim).
        positive_margin: the positive's cosine should be at least this.
        negative_margin: the hardest other document's cosine should be at most this.
        begin: first row that is scored.
        end: the row after the last one.
        divisor: see `contrast`.
        tile: rows of a tile.

    Returns:
        The loss and the number of scored rows with a hinge above 0.
    """
    anchors, positives = unit(anchors), unit(positives)
    end = len(anchors) if end is None else end
    divisor = max(float(end - begin if divisor is None else divisor), 1e-9)
    wanted = torch.is_grad_enabled() and (anchors.requires_grad or positives.requires_grad)
    margins = (positive_margin, negative_margin)
    loss, active = _HardestInBatch.apply(anchors, positives, margins, (begin, end), divisor, tile, wanted)  # type: ignore[no-untyped-call]
    return loss + nan_unless_finite(anchors, positives), active
