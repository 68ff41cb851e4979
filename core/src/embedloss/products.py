"""The similarities of tiles of rows with all texts of another role, and the way back of their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from embedloss.similarity import matrix, safe_inverse


class Product(Protocol):
    """Logits of one tile after another, at one level after another (levels are prefixes of the embeddings; else one).

    A tile's levels come in order, and the first tile is the largest.
    """

    def logits(self, level: int, rows: slice) -> Tensor:
        """(rows of the tile, texts): the caller may write to it, and keep it until it asks for another."""

    def take(self, gradient: Tensor) -> None:
        """What the caller has made of the logits that it got last: their gradient, in their place."""

    def finish(self) -> None:
        """After the last level of a tile: add to the gradients of the texts."""


class _Reused:
    """Matrices that all tiles of a call take in turn, in one block of memory.

    Fresh memory costs a page fault for every 4 KB, together more than a pass over it. The C library would map each of several
    blocks anew where it keeps one.

    Args:
        count: of matrices.
    """

    def __init__(self, count: int) -> None:
        self.count, self.block = count, torch.empty(0)

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """(count, rows of left, rows of right), uninitialised; no more rows than at first."""
        if not self.block.numel():
            self.block = left.new_empty(self.count, len(left), len(right))
        return self.block[:, : len(left)]


class Dot:
    """Dot products, or cosines, times a factor.

    Args:
        left: (rows, dim) of all tiles.
        right: (texts, dim).
        factor: what they are multiplied by.
        of_left: where their gradient is added, of the shape of `left`; None: nowhere.
        of_right: the same of `right`.
        inverse_norms: of the rows of both, (rows,) and (texts,), for cosines; the gradients take these for constants.
    """

    def __init__(
        self,
        left: Tensor,
        right: Tensor,
        factor: float | Tensor,
        of_left: Tensor | None,
        of_right: Tensor | None,
        inverse_norms: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.left, self.right, self.of_left, self.of_right = left, right, of_left, of_right
        self.factor = factor
        self.inverse_norms = inverse_norms and ((inverse_norms[0] * factor)[:, None], inverse_norms[1])
        self.reused = _Reused(1)

    def logits(self, level: int, rows: slice) -> Tensor:
        """As in `Product`."""
        self.rows, left = rows, self.left[rows]
        return self._times_factors(torch.mm(left, self.right.T, out=self.reused(left, self.right)[0]))

    def take(self, gradient: Tensor) -> None:
        """As in `Product`."""
        self.gradient = self._times_factors(gradient)

    def _times_factors(self, x: Tensor) -> Tensor:
        if self.inverse_norms is None:
            return x.mul_(self.factor)
        of_left, of_right = self.inverse_norms
        return x.mul_(of_left[self.rows]).mul_(of_right)

    def finish(self) -> None:
        """As in `Product`."""
        if self.of_left is not None:
            self.of_left[self.rows].addmm_(self.gradient, self.right)
        if self.of_right is not None:
            self.of_right.addmm_(self.gradient.T, self.left[self.rows])


class Through:
    """Any similarity of `matrix` times a factor, differentiated by autograd. Arguments as in `Dot`."""

    def __init__(
        self,
        name: str,
        left: Tensor,
        right: Tensor,
        factor: Tensor,
        of_factor: Tensor | None,
        of_left: Tensor | None,
        of_right: Tensor | None,
    ) -> None:
        self.name, self.factor, self.of_factor = name, factor, of_factor
        self.left, self.right, self.of_left, self.of_right = left, right, of_left, of_right

    def logits(self, level: int, rows: slice) -> Tensor:
        """As in `Product`."""
        of_left = None if self.of_left is None else self.of_left[rows]
        self.leaves = [(self.left[rows].detach(), of_left), (self.right.detach(), self.of_right)]
        for leaf, gradient in self.leaves:
            leaf.requires_grad_(gradient is not None)
        with torch.enable_grad():
            self.found = matrix(self.name, *(leaf for leaf, _ in self.leaves))
        return self.found.detach() * self.factor

    def take(self, gradient: Tensor) -> None:
        """As in `Product`."""
        self.gradient = gradient

    def finish(self) -> None:
        """As in `Product`."""
        if self.of_factor is not None:
            self.of_factor.add_((self.gradient * self.found.detach()).sum())
        wanted = [(leaf, total) for leaf, total in self.leaves if total is not None]
        if wanted:
            found = torch.autograd.grad(self.found, [leaf for leaf, _ in wanted], self.gradient * self.factor)
            for (_, total), d in zip(wanted, found, strict=True):
                total.add_(d)
        del self.found, self.gradient  # before the next tile is made


def across_norm(gradient: Tensor, x: Tensor, inverse: Tensor, rows: int = 1024) -> None:
    """Subtract from each row of a gradient what lies along the row of x, in place.

    Args:
        gradient: (n, dim).
        x: (n, dim).
        inverse: (n,) one over the norms of x.
        rows: looked at at a time.
    """
    for begin in range(0, len(x), rows):
        g, part = gradient[begin : begin + rows], x[begin : begin + rows]
        along = torch.linalg.vecdot(g, part) * inverse[begin : begin + rows].square()
        g.addcmul_(part, along[:, None], value=-1)


class Prefixes:
    """The texts of all roles cut to several sizes and normalised, so that a tile's cosines at every size cost one product.

    The dot product of the first d coordinates is that of the first c and of those in between, and the way back is the same
    sum: a coordinate gets the gradients of all prefixes that hold it in one product. What the norms of the prefixes get is
    added by `finish`.

    Args:
        texts: role -> (texts, dim), neither cut nor normalised.
        gradients: role -> where its gradient is added, for the roles that want one.
        dims: ascending sizes of the prefixes.
        weights: one a size, of its part of the gradients.
        factor: of the cosines.
    """

    def __init__(
        self,
        texts: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        dims: Sequence[int],
        weights: Sequence[float],
        factor: float,
    ) -> None:
        self.texts, self.gradients, self.weights, self.factor = texts, gradients, weights, factor
        self.spans = [slice(begin, end) for begin, end in zip([0, *dims], dims, strict=False)]
        self.inverses = {role: self._inverse_norms(text) for role, text in texts.items()}
        self.along = {role: torch.zeros_like(self.inverses[role]) for role in gradients}

    def _inverse_norms(self, text: Tensor) -> Tensor:
        norms = torch.stack([torch.linalg.vector_norm(text[:, span], dim=1) for span in self.spans])
        return safe_inverse(norms.square_().cumsum(0).sqrt_())

    def product(self, left: str, right: str) -> PrefixProduct:
        """The product of the rows of role `left` with all texts of role `right`."""
        return PrefixProduct(self, left, right)

    def finish(self) -> None:
        """Add what the norms get: cosines do not change along a prefix."""
        for role, gradient in self.gradients.items():
            shares = self.along[role] * self.inverses[role].square()
            for span, share in zip(self.spans, shares.flip(0).cumsum(0).flip(0), strict=True):
                gradient[:, span].addcmul_(self.texts[role][:, span], share[:, None], value=-1)


class PrefixProduct:
    """The product of two roles at all prefixes."""

    def __init__(self, prefixes: Prefixes, left: str, right: str) -> None:
        self.prefixes, self.left, self.right = prefixes, left, right
        of_left, self.of_right = prefixes.inverses[left], prefixes.inverses[right]
        self.of_logits = (of_left * prefixes.factor)[..., None]
        self.of_gradients = self.of_logits * of_left.new_tensor(prefixes.weights)[:, None, None]
        self.keeps = bool(prefixes.gradients)  # those of all levels until the last; else their logits take turns
        self.reused = _Reused(2 + len(prefixes.spans) if self.keeps else 2)
        self.taken: list[Tensor] = []

    def _parts(self, level: int) -> tuple[Tensor, Tensor]:
        span = self.prefixes.spans[level]
        return self.prefixes.texts[self.left][self.rows, span], self.prefixes.texts[self.right][:, span]

    def logits(self, level: int, rows: slice) -> Tensor:
        """As in `Product`."""
        self.level, self.rows = level, rows
        left, right = self._parts(level)
        self.dots, *self.others = self.reused(left, right)
        self.dots.addmm_(left, right.T, beta=int(level > 0))
        logits = torch.mul(self.dots, self.of_logits[level, rows], out=self.others[level if self.keeps else 0])
        return logits.mul_(self.of_right[level])

    def take(self, gradient: Tensor) -> None:
        """As in `Product`."""
        summed = self.prefixes.along
        self.taken.append(gradient.mul_(self.of_gradients[self.level, self.rows]).mul_(self.of_right[self.level]))
        along = torch.mul(gradient, self.dots, out=self.others[-1])
        if self.left in summed:
            summed[self.left][self.level, self.rows].add_(along.sum(1))
        if self.right in summed:
            summed[self.right][self.level].add_(along.sum(0))

    def finish(self) -> None:
        """As in `Product`."""
        gradients, total = self.prefixes.gradients, None
        for level in reversed(range(len(self.taken))):
            total = self.taken.pop() if total is None else total.add_(self.taken.pop())
            left, right = self._parts(level)
            if self.left in gradients:
                gradients[self.left][self.rows, self.prefixes.spans[level]].addmm_(total, right)
            if self.right in gradients:
                gradients[self.right][:, self.prefixes.spans[level]].addmm_(total.T, left)
