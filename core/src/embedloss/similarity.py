"""Similarities and distances: matrix (all against all) and pairwise (row against row).

Both names of the field are accepted: "cosine", "cos", "cos_sim", "pairwise_cos_sim", or a function of that name.
Cosines follow house rule R5: a zero vector has cosine 0 with everything and receives gradient 0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-12

_ALIASES = {
    "cosine": ("cos", "cos_sim", "pairwise_cos_sim", "cosine_similarity", "cosine_distance", "pairwise_cosine_distance"),
    "dot": ("dot_score", "pairwise_dot_score", "dot_product", "inner_product"),
    "euclidean": ("euclidean_sim", "pairwise_euclidean_sim", "euclidean_distance", "eucledian_distance", "l2"),
    "manhattan": ("manhattan_sim", "pairwise_manhattan_sim", "manhattan_distance", "l1"),
    "squared-euclidean": ("squared_euclidean", "squared_euclidean_distance"),
}
_CANONICAL = {name.replace("_", "-"): key for key, names in _ALIASES.items() for name in (key, *names)}


def _name_of(value: Any) -> str:
    """A name as it is; that of a function or enum member; or the attribute under which a class keeps a lambda."""
    if isinstance(value, str):
        return value
    name = str(getattr(value, "__name__", None) or getattr(value, "name", ""))
    if name == "<lambda>":  # the enumerations of other libraries are often classes of lambdas
        owner: Any = sys.modules.get(value.__module__)
        for part in value.__qualname__.split(".")[:-1]:
            owner = getattr(owner, part, None)
        return next((key for key, member in vars(owner).items() if member is value), name) if owner is not None else name
    return name


def canonical(value: Any, allowed: tuple[str, ...], parameter: str) -> str:
    """The canonical name of a similarity or distance given by name ("cosine", "SiameseDistanceMetric.COSINE_DISTANCE"), or by
    a function or enum member of that name.

    Raises:
        ValueError: names what is allowed.
    """
    found = _CANONICAL.get(_name_of(value).rsplit(".", 1)[-1].lower().replace("_", "-"))
    if found not in allowed:
        raise ValueError(f"{parameter} must be one of {', '.join(allowed)}; got {value!r}")
    return found


def similarity_name(value: Any) -> str:
    """The canonical name of a similarity: cosine, dot, euclidean or manhattan."""
    return canonical(value, ("cosine", "dot", "euclidean", "manhattan"), "similarity_fct")


def distance_name(value: Any) -> str:
    """The canonical name of a distance: euclidean, squared-euclidean, manhattan or cosine."""
    return canonical(value, ("euclidean", "squared-euclidean", "manhattan", "cosine"), "distance")


def unit(x: Tensor) -> Tensor:
    """Rows divided by their norm; a row of norm at most 1e-12 becomes 0 and receives gradient 0. (..., dim)."""
    found: Tensor = _Unit.apply(x)  # type: ignore[no-untyped-call]
    return found


def inverse_norm(x: Tensor) -> Tensor:
    """One over the norm of rows, 0 where `unit` gives 0. (..., dim) -> (..., 1)."""
    return safe_inverse(torch.linalg.vector_norm(x, dim=-1, keepdim=True))


def safe_inverse(norm: Tensor) -> Tensor:
    """One over norms, 0 where a norm is at most 1e-12."""
    return torch.where(norm <= EPSILON, 0.0, 1 / norm.clamp(min=EPSILON))


class _Unit(torch.autograd.Function):
    """Less work and memory than what autograd makes of it; the backward pass is differentiable itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse = inverse_norm(x)
        ctx.save_for_backward(x, inverse)
        return x * inverse

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        x, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative needs to know how it depends on x
            inverse = inverse_norm(x)
        along = (upstream[0] * x).sum(-1, keepdim=True) * inverse.pow(2)
        found: Tensor = torch.addcmul(upstream[0], x, along, value=-1) * inverse
        return found


class _Cosine(torch.autograd.Function):
    """Cosines of row i of x with row i of y, without the unit vectors; the backward pass is differentiable itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        inverses = inverse_norm(x), inverse_norm(y)
        cosine = (x * y).sum(-1, keepdim=True) * inverses[0] * inverses[1]
        ctx.save_for_backward(x, y, *inverses, cosine)
        return cosine.squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y, inverse_x, inverse_y, cosine = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative needs to know how they depend on x and y
            inverse_x, inverse_y = inverse_norm(x), inverse_norm(y)
            cosine = (x * y).sum(-1, keepdim=True) * inverse_x * inverse_y
        g = upstream[0].clone()[..., None]  # what is made of autograd's symbolic zeros could not be written to
        across, along = g * inverse_x * inverse_y, g * cosine
        wanted = zip(ctx.needs_input_grad, ((x, y, inverse_x), (y, x, inverse_y)), strict=True)
        of_x, of_y = (
            (b * across).addcmul_(a, along * inverse.square(), value=-1) if need else None for need, (a, b, inverse) in wanted
        )
        return of_x, of_y


def euclidean_matrix(x: Tensor, y: Tensor, squared: bool = False) -> Tensor:
    """(n, m) Euclidean distances by one matrix product, with exact zeros of gradient zero.

    Resolution: about 3e-4 of the largest norm in float32. The common mean is subtracted first, which removes the loss of
    digits that a common offset would cause.
    """
    centre = y.detach().mean(0, keepdim=True) if len(y) else 0.0
    x, y = x - centre, y - centre
    square = (x.pow(2).sum(1)[:, None] - 2 * (x @ y.T) + y.pow(2).sum(1)[None]).clamp(min=0)
    return square if squared else safe_sqrt(square)


def safe_sqrt(square: Tensor) -> Tensor:
    """The square root with gradient 0 at 0 (and NaN where the argument is NaN)."""
    zero = square == 0
    return torch.where(zero, 1.0, square).sqrt() * torch.where(zero, 0.0, 1.0)


def matrix(name: str, x: Tensor, y: Tensor) -> Tensor:
    """(n, m) similarities of every row of x (n, dim) with every row of y (m, dim); distances are negated."""
    if name == "cosine":
        return unit(x) @ unit(y).T
    if name == "dot":
        return x @ y.T
    if name == "euclidean":
        return -euclidean_matrix(x, y)
    return -torch.cdist(x, y, p=1.0)


def pairwise(name: str, x: Tensor, y: Tensor) -> Tensor:
    """(...,) similarities of x (..., dim) and y (..., dim), row by row; distances are negated."""
    if name == "cosine" and x.shape == y.shape:
        found: Tensor = _Cosine.apply(x, y)  # type: ignore[no-untyped-call]
        return found
    if name == "cosine":
        return (unit(x) * unit(y)).sum(-1)
    if name == "dot":
        return (x * y).sum(-1)
    return -pairwise_distance(name, x, y)


def pairwise_distance(name: str, x: Tensor, y: Tensor) -> Tensor:
    """(...,) distances, row by row: euclidean, squared-euclidean, manhattan, or cosine (1 - cosine)."""
    if name == "cosine":
        return 1 - pairwise("cosine", x, y)
    if name == "euclidean":
        norm: Tensor = torch.linalg.vector_norm(x - y, dim=-1)
        return norm
    if name == "squared-euclidean":
        return (x - y).pow(2).sum(-1)
    return (x - y).abs().sum(-1)


Similarity = Callable[[Tensor, Tensor], Tensor]
