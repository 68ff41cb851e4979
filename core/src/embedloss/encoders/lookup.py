"""One gradient for all lookups of a batch in a word-embedding table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Lookups:
    """Lookups of several chunks in one table, with one gradient.

    The gradient of `nn.Embedding` is as large as its table, and each chunk would make one: with short chunks much of the memory
    and of the time of a backward pass. Here every chunk adds the rows that it has looked up.

    Args:
        table: the embedding; its weight is read here once for all chunks.
        leaf: the weight is a leaf that is there for these lookups alone: the sum is its gradient.

    Example:
        >>> lookups = Lookups(encoder.model.get_input_embeddings())  # doctest: +SKIP
        >>> with lookups.used():  # doctest: +SKIP
        ...     embeddings = encoder(chunk)
    """

    def __init__(self, table: nn.Embedding, leaf: bool = False) -> None:
        self._table, self._sum = table, table.weight if leaf else table.weight.detach()
        self._weight: Tensor = table.weight if leaf else _Shared.apply(table.weight, self._sum)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Within, the table's forward pass is a lookup of these."""
        table: Any = self._table
        # Models call the module itself, deep inside; a hook would come after its own lookup.
        table.forward = lambda ids: _Lookup.apply(self._weight, ids, self._sum, table.padding_idx)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            del table.forward


def shared_lookups(encoder: nn.Module, leaf: bool = False) -> Lookups | None:
    """Lookups for an encoder's chunks; None where its table is not trained, or is no plain table: sharded, say."""
    model: Any = getattr(encoder, "model", None)
    if not isinstance(model, nn.Module) or not hasattr(model, "get_input_embeddings") or torch.compiler.is_compiling():
        return None
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    if type(table) is not nn.Embedding or table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
        return None
    if "forward" in vars(table):  # someone else's, such as that of accelerate for weights that are elsewhere
        return None
    weight = table.weight
    whole = type(weight) is nn.Parameter and weight.shape == (table.num_embeddings, table.embedding_dim)
    return Lookups(table, leaf) if whole and weight.requires_grad and (leaf or torch.is_grad_enabled()) else None


class _Shared(torch.autograd.Function):
    """The table for all lookups; its backward pass runs after those of all of them."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, total: Tensor) -> Tensor:
        ctx.total = total
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: None) -> tuple[Tensor | None, None]:
        made, ctx.total.grad = ctx.total.grad, None
        return made, None


class _Lookup(torch.autograd.Function):
    """A lookup that adds its gradient to that of `total`, and gives none to the table."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, total: Tensor, padding: int | None) -> Tensor:
        ctx.total, ctx.padding = total, padding
        ctx.save_for_backward(ids)
        return nn.functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None]:
        (ids,) = ctx.saved_tensors
        rows, where = torch.unique(ids, return_inverse=True)
        sums = torch.ops.aten.embedding_dense_backward(gradients[0], where, len(rows), -1, False)
        if ctx.padding is not None:
            sums[rows == ctx.padding] = 0
        if ctx.total.grad is None:
            ctx.total.grad = torch.zeros_like(ctx.total)
        ctx.total.grad[rows] += sums
        return None, None, None, None
