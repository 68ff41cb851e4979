"""In-batch softmax losses as pure functions.

Every loss here asks each row to score its positive above a set of other candidates. The set is described by `Block`s, and
one kernel (`contrast`) evaluates any list of them: over row blocks, with the gradient taken at once, so that no (rows x pool)
matrix is ever kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from embedloss.autograd import with_gradients
from embedloss.in_batch import Mask, Masks, any_of
from embedloss.similarity import matrix, unit

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
HARDNESS_MODES = ("in_batch_negatives", "hard_negatives", "all_negatives")
TILE_ELEMENTS = 2**20  # of one (tile x columns) matrix


@dataclass(frozen=True)
class Block:
    """A block of candidates: for each row i, the similarities of its text of role `left` with every text of role `right`.

    Args:
        left: a role with one text a row.
        right: a role.
        group: blocks of one group share a softmax; the row's loss is the mean over groups.
        diagonal: what text i of `right` is for row i: the "positive", "excluded", or a "candidate" like any other (also where
            `right` is not aligned with the rows).
        excluded: True where a text is no candidate of that row.
        boosted: True where the logit gets `strength` times the (constant) similarity on top.
        positives: of the first block only: True where a text is a positive of that row, as is the diagonal. The row's score is
            then the logsumexp of all of them.
    """

    left: str
    right: str
    group: int = 0
    diagonal: Literal["positive", "excluded", "candidate"] = "candidate"
    excluded: Mask | None = None
    boosted: Mask | None = None
    positives: Mask | None = None


def contrast(
    texts: Mapping[str, Tensor],
    blocks: Sequence[Block],
    *,
    scale: float | Tensor = 1.0,
    strength: float = 0.0,
    similarity: str = "dot",
    begin: int = 0,
    end: int | None = None,
    divisor: float | None = None,
    tile: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of each row's positive against the candidates of its blocks.

    The first block holds the positive on its diagonal. Per group, the row's loss is `softplus(lse(others) - positive)`,
    which is `lse(all) - positive` without its cancellation; a group without other candidates gives 0.

    Args:
        texts: role -> (texts, dim), float32 or float64. Give unit rows for cosine similarity.
        blocks: the candidates.
        scale: factor on similarities; a tensor receives its gradient.
        strength: factor of the boost.
        similarity: "dot", "euclidean" or "manhattan".
        begin: first row that is scored.
        end: the row after the last one; all rows if None.
        divisor: what the sum over scored rows is divided by; their number if None.
        tile: rows of a tile; chosen from the number of columns if None.

    Returns:
        The loss (scalar, differentiable once) and the number of scored rows that had any candidate beside the positive.
    """
    some = texts[blocks[0].left]
    end = len(some) if end is None else end
    factor = torch.as_tensor(scale, dtype=some.dtype, device=some.device)
    inputs = {"": factor, **texts}
    gradients = {k: torch.zeros_like(t) for k, t in inputs.items() if t.requires_grad and torch.is_grad_enabled()}
    blocks = [block for block in blocks if len(texts[block.right])]
    groups = 1 + max((block.group for block in blocks), default=0)
    columns = max((len(texts[block.right]) for block in blocks), default=1)
    tile = tile or min(max(TILE_ELEMENTS // columns, 32), 1024)
    share = 1 / (groups * max(float(end - begin if divisor is None else divisor), 1e-9))
    total, active = factor.detach().new_zeros(()), factor.detach().new_zeros(())
    for start in range(begin, end, tile):
        stop = min(start + tile, end)
        parts = [_similarities(similarity, texts, block, start, stop, gradients) for block in blocks]
        with torch.no_grad():
            logits: list[Tensor] = []
            positive, shared = factor, None
            others: list[list[Tensor]] = [[] for _ in range(groups)]
            for block, (found, *_) in zip(blocks, parts, strict=True):
                z = found * factor
                if not logits and block.positives is None:
                    positive = z.diagonal(start).clone()  # never boosted
                elif block.positives is not None:
                    own = block.positives(start, stop)
                    shared = z.masked_fill(~own, -math.inf)
                    positive = shared.logsumexp(1)
                    z.masked_fill_(own, -math.inf)
                if block.boosted is not None and strength:
                    z += strength * found * block.boosted(start, stop)
                if block.diagonal != "candidate":
                    z.diagonal(start).fill_(-math.inf)
                if block.excluded is not None:
                    z.masked_fill_(block.excluded(start, stop), -math.inf)
                others[block.group].append(z.logsumexp(1))
                logits.append(z)
            gap = torch.stack([torch.stack(group).logsumexp(0) for group in others]) - positive
            rows = torch.logaddexp(gap, torch.zeros_like(gap))
            total += rows.sum() * share
            active += (gap != -math.inf).any(0).sum()
            for block, z, (found, *leaves) in zip(blocks, logits, parts, strict=True) if gradients else ():
                g = z.sub_((positive + rows[block.group])[:, None]).exp_()
                if block.positives is not None and shared is not None:
                    g -= gap[block.group].sigmoid()[:, None] * (shared - positive[:, None]).exp_()
                elif block.diagonal == "positive":
                    g.diagonal(start).copy_(-gap[block.group].sigmoid())
                g *= share
                if "" in gradients:
                    gradients[""] += (g * found).sum()
                if found.requires_grad:
                    _push(found, leaves, g.mul_(factor), block, start, stop, gradients)
        del parts, logits
    known = [(inputs[k], g) for k, g in gradients.items()]
    return (with_gradients(total, *known) if known else total) + nan_unless_finite(*texts.values()), active


def _similarities(
    name: str, texts: Mapping[str, Tensor], block: Block, start: int, stop: int, gradients: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The similarities of a tile, and the leaves of their graph."""
    left = texts[block.left].detach()[start:stop].requires_grad_(block.left in gradients)
    right = texts[block.right].detach().requires_grad_(block.right in gradients)
    return matrix(name, left, right), left, right


def _push(
    found: Tensor, leaves: Sequence[Tensor], g: Tensor, block: Block, start: int, stop: int, gradients: Mapping[str, Tensor]
) -> None:
    """Add the gradients of a tile's leaves, given that of its similarities."""
    names = [(leaf, role) for leaf, role in zip(leaves, (block.left, block.right), strict=True) if leaf.requires_grad]
    for (leaf, role), d in zip(names, torch.autograd.grad(found, [leaf for leaf, _ in names], g), strict=True):
        (gradients[role][start:stop] if leaf is leaves[0] else gradients[role]).add_(d)


def nan_unless_finite(*tensors: Tensor) -> Tensor:
    """0, or NaN where any entry is not finite: a mask must not hide what went wrong (no gradient)."""
    finite = torch.stack([torch.isfinite(t.detach()).all() for t in tensors]).all()
    return torch.where(finite, 0.0, math.nan).to(tensors[0].dtype)


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
        directions: which candidate sets are used: `DIRECTIONS`, or "positive_to_positive" (doc_to_doc without hard negatives).
        per_direction: one softmax a direction, averaged, instead of one over all of them.
        hardness_mode: which logits of query_to_doc get `hardness_strength` times their similarity on top, as a constant.
        hardness_strength: see there.
        own_negatives_count: whether a row's own hard negatives are among its candidates in query_to_doc.
        masks: what is no candidate.
        shared: (rows, rows) which positives a row has, its own included; its score is then the logsumexp of theirs.
        begin: first row that is scored (this process's first).
        end: the row after the last one.
        divisor: see `contrast`.
        tile: see `contrast`.

    Returns:
        The loss and the number of scored rows that had a negative.
    """
    texts = {"anchor": anchors, "positive": positives} | ({} if negatives is None else {"negative": negatives})
    if similarity == "cosine":
        similarity, texts = "dot", {role: unit(t) for role, t in texts.items()}

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
    span = {"begin": begin, "end": end, "divisor": divisor, "tile": tile}
    return contrast(texts, blocks, scale=scale, strength=strength, similarity=similarity, **span)  # type: ignore[arg-type]


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


def mega_batch_margin(
    anchors: Tensor,
    positives: Tensor,
    *,
    positive_margin: float = 0.8,
    negative_margin: float = 0.3,
    excluded: Mask | None = None,
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
        excluded: True where a document is not looked at.
        begin: first row that is scored.
        end: the row after the last one.
        divisor: see `contrast`.
        tile: rows of a tile.

    Returns:
        The loss and the number of scored rows with a hinge above 0.
    """
    anchors, positives = unit(anchors), unit(positives)
    end = len(anchors) if end is None else end
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
    loss = (short.relu() + over.relu()).sum() / max(float(end - begin if divisor is None else divisor), 1e-9)
    return loss + nan_unless_finite(anchors, positives), ((short > 0) | (over > 0)).sum()
