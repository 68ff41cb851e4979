"""Softmax of each row's positive against candidates, as one kernel.

The candidates are described by `Block`s, and `contrast` evaluates any list of them: over row blocks, with the gradient taken
at once, so that no (rows x pool) matrix is ever kept. Blocks that are the transpose of another share its product where all
rows fit into one tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from embedloss.autograd import with_gradients
from embedloss.in_batch import Mask
from embedloss.similarity import matrix, unit

TILE_ELEMENTS = 2**20  # of one (tile x columns) matrix
TILE_ROWS = 128  # at least: fewer would spend their time on adding to the gradient of all columns


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
    weights: Tensor | None = None,
    tile: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of each row's positive against the candidates of its blocks.

    The first block holds the positive on its diagonal. Per group, the row's loss is `softplus(lse(others) - positive)`,
    which is `lse(all) - positive` without its cancellation; a group without other candidates gives 0.

    Args:
        texts: role -> (texts, dim), float32 or float64.
        blocks: the candidates.
        scale: factor on similarities; a tensor receives its gradient.
        strength: factor of the boost.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        begin: first row that is scored.
        end: the row after the last one; all rows if None.
        divisor: what the sum over scored rows is divided by; their number if None.
        weights: (scored rows,) what each row's loss is multiplied by.
        tile: rows of a tile; chosen from the number of columns if None.

    Returns:
        The loss (scalar, differentiable once) and the number of scored rows that had any candidate beside the positive.
    """
    if similarity == "cosine":
        similarity, texts = "dot", {role: unit(t) for role, t in texts.items()}
    some = texts[blocks[0].left]
    end = len(some) if end is None else end
    factor = torch.as_tensor(scale, dtype=some.dtype, device=some.device)
    inputs = {"": factor, **texts}
    joint = similarity == "dot" and isinstance(scale, Tensor)  # the factor is left out of the gradients until the end
    every = joint and factor.requires_grad  # the factor's gradient is made of those of all texts
    gradients = {k: torch.zeros_like(t) for k, t in inputs.items() if (t.requires_grad or every) and torch.is_grad_enabled()}
    blocks = [block for block in blocks if len(texts[block.right])]
    groups = 1 + max((block.group for block in blocks), default=0)
    columns = max((len(texts[block.right]) for block in blocks), default=1)
    tile = tile or min(max(TILE_ELEMENTS // columns, TILE_ROWS), 1024)
    share = 1 / (groups * max(float(end - begin if divisor is None else divisor), 1e-9))
    total, active = factor.detach().new_zeros(()), factor.detach().new_zeros(())
    lowest = torch.finfo(some.dtype).min  # finite, so that a row without candidates has the sum 0 rather than NaN
    with torch.no_grad():
        for start in range(begin, end, tile):
            stop = min(start + tile, end)
            tiles: list[tuple[Tensor, Tensor, Callable[[Tensor], None] | int]] = []
            products: dict[tuple[str, str], tuple[int, Tensor]] = {}  # kept for blocks that are the transpose of another
            positive, shared = factor, None
            sums: list[list[Tensor]] = [[] for _ in range(groups)]
            for block in blocks:
                whole = start == 0 and stop == len(texts[block.left]) == len(texts[block.right])
                pull: Callable[[Tensor], None] | int
                if whole and (block.right, block.left) in products:
                    pull, product = products[block.right, block.left]
                    z = product.T.clone()
                else:
                    z, pull = _logits(similarity, texts, factor, block, start, stop, gradients, scale)
                    if whole and any((b.right, b.left) == (block.left, block.right) != (b.left, b.right) for b in blocks):
                        products[block.left, block.right] = len(tiles), z.clone()
                if not tiles and block.positives is None:
                    positive = z.diagonal(start).clone()  # never boosted
                elif block.positives is not None:
                    own = block.positives(start, stop)
                    shared = z.masked_fill(~own, -math.inf)
                    positive = shared.logsumexp(1)
                    z.masked_fill_(own, -math.inf)
                if block.boosted is not None and strength:
                    z += z * block.boosted(start, stop) * (strength / factor)
                if block.diagonal != "candidate":
                    z.diagonal(start).fill_(-math.inf)
                if block.excluded is not None:
                    z.masked_fill_(block.excluded(start, stop), -math.inf)
                largest = z.amax(1).clamp_(min=lowest)
                z.sub_(largest[:, None]).exp_()
                sums[block.group].append(largest + z.sum(1).log())
                tiles.append((z, largest, pull))
            del products
            gap = torch.stack([torch.stack(group).logsumexp(0) for group in sums]) - positive
            rows = torch.logaddexp(gap, torch.zeros_like(gap))
            part: float | Tensor = share if weights is None else weights[start - begin : stop - begin].to(rows) * share
            total += rows.sum() * part if isinstance(part, float) else (rows * part).sum()
            active += (gap != -math.inf).any(0).sum()
            for block, (g, largest, pull) in zip(blocks, tiles, strict=True) if gradients else ():
                g *= ((largest - positive - rows[block.group]).exp() * part)[:, None]
                surely = gap[block.group].sigmoid() * part
                if block.positives is not None and shared is not None:
                    g -= surely[:, None] * (shared - positive[:, None]).exp_()
                elif block.diagonal == "positive":
                    g.diagonal(start).copy_(-surely)
                if isinstance(pull, int):
                    tiles[pull][0].add_(g.T)
            for g, _, pull in tiles if gradients else ():
                if not isinstance(pull, int):
                    pull(g)
            del tiles, z, pull  # before the next tile is made
        if joint:
            for role, text in texts.items() if "" in gradients else ():  # each product counts for its left and its right texts
                gradients[""].add_(torch.dot(gradients[role].flatten(), text.flatten()), alpha=0.5)
            for role in gradients.keys() - {""}:
                gradients[role].mul_(factor)
    known = [(inputs[k], g) for k, g in gradients.items() if inputs[k].requires_grad]
    return (with_gradients(total, *known) if known else total) + nan_unless_finite(*texts.values()), active


def _logits(
    name: str,
    texts: Mapping[str, Tensor],
    factor: Tensor,
    block: Block,
    start: int,
    stop: int,
    gradients: Mapping[str, Tensor],
    scale: float | Tensor,
) -> tuple[Tensor, Callable[[Tensor], None]]:
    """The logits of a tile, and what adds their gradient to those of the texts and of the factor (its name is "").

    `scale` is the factor as it came. With "dot" a number goes into the matrix products, and a tensor into no gradient.
    """
    left, right = texts[block.left].detach()[start:stop], texts[block.right].detach()
    if name == "dot":
        alpha = 1.0 if isinstance(scale, Tensor) else scale

        def pull(g: Tensor) -> None:
            if block.left in gradients:
                gradients[block.left][start:stop].addmm_(g, right, alpha=alpha)
            if block.right in gradients:
                gradients[block.right].addmm_(g.T, left, alpha=alpha)

        return (left @ right.T).mul_(factor), pull
    leaves = [t.requires_grad_(role in gradients) for t, role in ((left, block.left), (right, block.right))]
    with torch.enable_grad():
        found = matrix(name, left, right)

    def pull_through(g: Tensor) -> None:
        if "" in gradients:
            gradients[""].add_((g * found.detach()).sum())
        if not found.requires_grad:
            return
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        for leaf, d in zip(wanted, torch.autograd.grad(found, wanted, g * factor), strict=True):
            (gradients[block.left][start:stop] if leaf is left else gradients[block.right]).add_(d)

    return found.detach() * factor, pull_through


def nan_unless_finite(*tensors: Tensor) -> Tensor:
    """0, or NaN where any entry is not finite: a mask must not hide what went wrong (no gradient)."""
    sums = torch.stack([t.detach().sum(dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors])
    return torch.where(torch.isfinite(sums).all(), 0.0, math.nan).to(tensors[0].dtype)
