"""Softmax of each row's positive against candidates, as one kernel.

The candidates are described by `Block`s, and `contrast` evaluates any list of them: over row blocks, with the gradient taken
at once, so that no (rows x pool) matrix is ever kept. Blocks that are the transpose of another share its product where all
rows fit into one tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from embedloss.autograd import with_gradients
from embedloss.embeddings import Embeddings
from embedloss.in_batch import Mask
from embedloss.products import Dot, Prefixes, Product, Through, across_norm
from embedloss.similarity import inverse_norm

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

    def remembering(self) -> Block:
        """The same block, whose masks are asked for once while the rows are the same."""
        masks = (self.excluded, self.boosted, self.positives)
        excluded, boosted, positives = (mask and lru_cache(maxsize=1)(mask) for mask in masks)
        return replace(self, excluded=excluded, boosted=boosted, positives=positives)


@dataclass(frozen=True)
class Scored:
    """The rows that have a loss, of all processes' usually this one's, and what theirs count.

    Args:
        begin: the first of them.
        end: the row after the last one; None: after all rows.
        divisor: what the sum over them is divided by; None: their number.
        weights: (scored rows,) what each row's loss is multiplied by.
    """

    begin: int = 0
    end: int | None = None
    divisor: float | None = None
    weights: Tensor | None = None

    @classmethod
    def own(cls, emb: Embeddings, weights: Tensor | None = None) -> Scored:
        """A process's own rows, divided so that the mean over processes is that over all rows."""
        return cls(emb.row_offset, emb.row_offset + len(emb), emb.pool_size / emb.world_size, weights)

    def span(self, rows: int) -> tuple[int, int]:
        """The first row, and the one after the last, of so many."""
        return self.begin, rows if self.end is None else self.end

    def share(self, rows: int) -> float:
        """What the sum over the scored rows of so many is multiplied by for the loss."""
        begin, end = self.span(rows)
        return 1 / max(float(end - begin if self.divisor is None else self.divisor), 1e-9)


ALL_ROWS = Scored()


def contrast(
    texts: Mapping[str, Tensor],
    blocks: Sequence[Block],
    *,
    scale: float | Tensor = 1.0,
    strength: float = 0.0,
    similarity: str = "dot",
    scored: Scored = ALL_ROWS,
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
        scored: the rows that have a loss, and what theirs count.
        tile: rows of a tile; chosen from the number of columns if None.

    Returns:
        The loss (scalar, differentiable once) and the number of scored rows that had any candidate beside the positive.
    """
    some, inverses = texts[blocks[0].left], dict[str, Tensor]()
    inputs = {"": torch.as_tensor(scale, dtype=some.dtype, device=some.device), **texts}
    factor, texts = inputs[""].detach(), {role: t.detach() for role, t in texts.items()}
    if similarity == "cosine":
        similarity, inverses = "dot", {role: inverse_norm(t).squeeze(1) for role, t in texts.items()}
    joint = similarity == "dot" and inputs[""].requires_grad  # the factor's gradient is made of those of all texts
    gradients = {k: torch.zeros_like(t) for k, t in inputs.items() if (t.requires_grad or joint) and torch.is_grad_enabled()}

    def product(left: str, right: str) -> Product:
        found = gradients.get(left), gradients.get(right)
        if similarity == "dot":
            norms = (inverses[left], inverses[right]) if inverses else None
            return Dot(texts[left], texts[right], factor, *found, norms)
        return Through(similarity, texts[left], texts[right], factor, gradients.get(""), *found)

    with torch.no_grad():
        losses, active = _over_tiles(texts, blocks, product, strength / factor, bool(gradients), scored, tile)
        for role, text in texts.items() if joint and gradients else ():  # each product counts for its left and its right texts
            gradients[""].add_(torch.dot(gradients[role].flatten(), text.flatten()) / factor, alpha=0.5)
        for role in gradients.keys() & inverses.keys():  # cosines do not change along a text
            across_norm(gradients[role], texts[role], inverses[role])
    known = [(inputs[k], g) for k, g in gradients.items() if inputs[k].requires_grad]
    return with_gradients(losses[0], *known) + nan_unless_finite(*texts.values()), active[0]


def contrast_prefixes(
    texts: Mapping[str, Tensor],
    blocks: Sequence[Block],
    dims: Sequence[int],
    dim_weights: Sequence[float],
    *,
    scale: float = 1.0,
    strength: float = 0.0,
    scored: Scored = ALL_ROWS,
    tile: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`contrast` by cosines of the first d coordinates, for several d at little more than the cost of the largest.

    Args:
        texts: as in `contrast`.
        blocks: as in `contrast`; their masks are asked for once a tile.
        dims: ascending sizes of the prefixes.
        dim_weights: one a size.
        scale: as there, a number.
        strength: this and those after it as there.

    Returns:
        The weighted sum over sizes (scalar, differentiable once), the losses (sizes,) and the `active` counts (sizes,).
    """
    gradients = {role: torch.zeros_like(t) for role, t in texts.items() if t.requires_grad and torch.is_grad_enabled()}
    with torch.no_grad():
        prefixes = Prefixes({role: t.detach() for role, t in texts.items()}, gradients, dims, dim_weights, scale)
        losses, active = _over_tiles(
            texts, blocks, prefixes.product, strength / scale, bool(gradients), scored, tile, len(dims)
        )
        prefixes.finish()
    total, bad = losses @ losses.new_tensor(dim_weights), nan_unless_finite(*texts.values())
    known = [(texts[role], g) for role, g in gradients.items()]
    return with_gradients(total, *known) + bad, losses + bad, active


def _over_tiles(
    texts: Mapping[str, Tensor],
    blocks: Sequence[Block],
    product: Callable[[str, str], Product],
    boost: float | Tensor,
    backward: bool,
    scored: Scored,
    tile: int | None,
    levels: int = 1,
) -> tuple[Tensor, Tensor]:
    """The losses of all levels and their `active` counts, (levels,) each; the products take the gradients. See `contrast`.

    Args:
        product: that of two roles.
        boost: what similarities are multiplied by for a boost of their logits.
        backward: whether gradients are wanted.
    """
    some = texts[blocks[0].left]
    begin, end = scored.span(len(some))
    blocks = [block if levels == 1 else block.remembering() for block in blocks if len(texts[block.right])]
    groups = 1 + max((block.group for block in blocks), default=0)
    columns = max((len(texts[block.right]) for block in blocks), default=1)
    tile = tile or min(max(TILE_ELEMENTS // columns, TILE_ROWS), 1024)
    share = scored.share(len(some)) / groups
    losses, active = some.new_zeros(2, levels)
    one_tile = begin == 0 and end <= tile
    twins = _transposes(blocks, {role for role, text in texts.items() if one_tile and len(text) == end})
    products = {i: product(block.left, block.right) for i, block in enumerate(blocks) if i not in twins}
    for start in range(begin, end, tile):
        stop = min(start + tile, end)
        part: float | Tensor = share
        if scored.weights is not None:
            part = scored.weights[start - begin : stop - begin].to(some) * share
        for level in range(levels):
            tiles: list[Tensor] = []
            for i in range(len(blocks)):
                tiles.append(tiles[twins[i]].T.clone() if i in twins else products[i].logits(level, slice(start, stop)))
            loss, learning = _softmax(blocks, groups, tiles, boost, part, start, stop, backward)
            losses[level].add_(loss)
            active[level].add_(learning)
            if backward:
                for i, of in twins.items():
                    tiles[of].add_(tiles[i].T)
                for i, one in products.items():
                    one.take(tiles[i])
        del tiles  # before the next are made
        for one in products.values() if backward else ():
            one.finish()
    return losses, active


def _transposes(blocks: Sequence[Block], whole: set[str]) -> dict[int, int]:
    """Blocks whose logits are the transpose of an earlier one's, which that is.

    Args:
        blocks: the candidates.
        whole: the roles whose texts all fit into the tile.
    """
    found: dict[int, int] = {}
    for i, block in enumerate(blocks):
        for j in range(i):
            turned = (blocks[j].right, blocks[j].left) == (block.left, block.right) != (block.right, block.left)
            if turned and j not in found and whole.issuperset((block.left, block.right)):
                found.setdefault(i, j)
    return found


def _softmax(
    blocks: Sequence[Block],
    groups: int,
    tiles: Sequence[Tensor],
    boost: float | Tensor,
    part: float | Tensor,
    start: int,
    stop: int,
    backward: bool,
) -> tuple[Tensor, Tensor]:
    """The loss of a tile's rows and how many had another candidate; the blocks' logits (`tiles`) become their gradients."""
    lowest = torch.finfo(tiles[0].dtype).min  # finite, so that a row without candidates has the sum 0 rather than NaN
    positive, shared = tiles[0], None
    sums: list[list[Tensor]] = [[] for _ in range(groups)]
    highest = []
    for i, (block, z) in enumerate(zip(blocks, tiles, strict=True)):
        if i == 0 and block.positives is None:
            positive = z.diagonal(start).clone()  # never boosted
        elif block.positives is not None:
            own = block.positives(start, stop)
            shared = z.masked_fill(~own, -math.inf)
            positive = shared.logsumexp(1)
            z.masked_fill_(own, -math.inf)
        if block.boosted is not None and boost:
            z += z * block.boosted(start, stop) * boost
        if block.diagonal != "candidate":
            z.diagonal(start).fill_(-math.inf)
        if block.excluded is not None:
            z.masked_fill_(block.excluded(start, stop), -math.inf)
        highest.append(z.amax(1).clamp_(min=lowest))
        z.sub_(highest[-1][:, None]).exp_()
        sums[block.group].append(highest[-1] + z.sum(1).log())
    gap = torch.stack([group[0] if len(group) == 1 else torch.stack(group).logsumexp(0) for group in sums]) - positive
    rows = torch.logaddexp(gap, torch.zeros_like(gap))
    for block, g, largest in zip(blocks, tiles, highest, strict=True) if backward else ():
        g *= ((largest - positive - rows[block.group]).exp() * part)[:, None]
        surely = gap[block.group].sigmoid() * part
        if block.positives is not None and shared is not None:
            g -= surely[:, None] * (shared - positive[:, None]).exp_()
        elif block.diagonal == "positive":
            g.diagonal(start).copy_(-surely)
    loss = rows.sum() * part if isinstance(part, float) else (rows * part).sum()
    return loss, (gap != -math.inf).any(0).sum()


def nan_unless_finite(*tensors: Tensor) -> Tensor:
    """0, or NaN where any entry is not finite: a mask must not hide what went wrong (no gradient)."""
    sums = torch.stack([t.detach().sum(dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors])
    return torch.where(torch.isfinite(sums).all(), 0.0, math.nan).to(tensors[0].dtype)
