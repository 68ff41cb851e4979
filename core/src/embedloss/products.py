"""The similarities of a tile of rows with all texts of another role, and the way back of their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from embedloss.similarity import matrix, safe_inverse


class Product(Protocol):
    """Logits of a tile at one level after another (levels are prefixes of the embeddings; else there is one)."""

    def logits(self, level: int) -> Tensor:
        """(rows of the tile, texts), the caller's own. Levels come in order."""

    def take(self, level: int, gradient: Tensor) -> None:
        """The gradient of these logits, which the product may write to; before the next level's logits are asked for."""

    def finish(self) -> None:
        """Add to the gradients of the texts."""


class Dot:
    """Dot products, or cosines, times a factor.

    Args:
        left: (rows, dim) of the tile.
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
        self.factors = [factor] if inverse_norms is None else [(inverse_norms[0] * factor)[:, None], inverse_norms[1]]

    def logits(self, level: int) -> Tensor:
        """As in `Product`."""
        return self._times_factors(self.left @ self.right.T)

    def take(self, level: int, gradient: Tensor) -> None:
        """As in `Product`."""
        self.gradient = self._times_factors(gradient)

    def _times_factors(self, x: Tensor) -> Tensor:
        for factor in self.factors:
            x.mul_(factor)
        return x

    def finish(self) -> None:
        """As in `Product`."""
        if self.of_left is not None:
            self.of_left.addmm_(self.gradient, self.right)
        if self.of_right is not None:
            self.of_right.addmm_(self.gradient.T, self.left)


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
        self.leaves = [(left.detach(), of_left), (right.detach(), of_right)]
        for leaf, gradient in self.leaves:
            leaf.requires_grad_(gradient is not None)
        self.name, self.factor, self.of_factor = name, factor, of_factor

    def logits(self, level: int) -> Tensor:
        """As in `Product`."""
        with torch.enable_grad():
            self.found = matrix(self.name, *(leaf for leaf, _ in self.leaves))
        return self.found.detach() * self.factor

    def take(self, level: int, gradient: Tensor) -> None:
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
        squares = torch.stack([text[:, span].square().sum(1) for span in self.spans])
        return safe_inverse(squares.cumsum(0).sqrt())

    def product(self, left: str, right: str, start: int, stop: int) -> PrefixProduct:
        """The product of rows start to stop of role `left` with all texts of role `right`."""
        return PrefixProduct(self, left, right, slice(start, stop))

    def finish(self) -> None:
        """Add what the norms get: cosines do not change along a prefix."""
        for role, gradient in self.gradients.items():
            shares = self.along[role] * self.inverses[role].square()
            for span, share in zip(self.spans, shares.flip(0).cumsum(0).flip(0), strict=True):
                gradient[:, span].addcmul_(self.texts[role][:, span], share[:, None], value=-1)


class PrefixProduct:
    """The product of one tile at all prefixes."""

    def __init__(self, prefixes: Prefixes, left: str, right: str, rows: slice) -> None:
        self.prefixes, self.left, self.right, self.rows = prefixes, left, right, rows
        self.dots = torch.empty(0)
        self.scratch: Tensor | None = None
        self.taken: list[Tensor] = []

    def _parts(self, level: int) -> tuple[Tensor, Tensor]:
        span = self.prefixes.spans[level]
        return self.prefixes.texts[self.left][self.rows, span], self.prefixes.texts[self.right][:, span]

    def _scaled(self, x: Tensor, level: int, factor: float, out: Tensor | None = None) -> Tensor:
        of_left = self.prefixes.inverses[self.left][level, self.rows] * factor
        return torch.mul(x, of_left[:, None], out=out).mul_(self.prefixes.inverses[self.right][level])

    def logits(self, level: int) -> Tensor:
        """As in `Product`."""
        left, right = self._parts(level)
        self.dots = self.dots.addmm_(left, right.T) if level else left @ right.T
        return self._scaled(self.dots, level, self.prefixes.factor)

    def take(self, level: int, gradient: Tensor) -> None:
        """As in `Product`."""
        of_dots = self._scaled(gradient, level, self.prefixes.factor * self.prefixes.weights[level], out=gradient)
        self.taken.append(of_dots)
        self.scratch = along = torch.mul(of_dots, self.dots, out=self.scratch)
        if self.left in self.prefixes.along:
            self.prefixes.along[self.left][level, self.rows] += along.sum(1)
        if self.right in self.prefixes.along:
            self.prefixes.along[self.right][level] += along.sum(0)

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
