"""Values whose gradients are computed with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@once_differentiable  # type: ignore[untyped-decorator]
def _product(_: Any, upstream: Tensor, known: Tensor) -> Tensor:
    return upstream * known


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *inputs_then_gradients: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs_then_gradients[len(inputs_then_gradients) // 2 :])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        times = upstream[0]
        if torch.is_grad_enabled():  # create_graph: the known gradients would pass for constants, a silent mistake
            times = times.detach().requires_grad_()
        elif times.device.type == "cpu" and float(times) == 1.0:  # elsewhere to ask would wait for the device
            return None, *ctx.saved_tensors, *(None for _ in ctx.saved_tensors)
        return None, *(_product(None, times, known) for known in ctx.saved_tensors), *(None for _ in ctx.saved_tensors)


def with_gradients(value: Tensor, *known: tuple[Tensor, Tensor]) -> Tensor:
    """A scalar with gradients that are known already, so that what they were made of need not stay in memory.

    Args:
        value: scalar.
        known: (input, gradient of `value` with respect to it) pairs. First order only: differentiating twice is an
            error. None: the value as it is.
    """
    if not known:
        return value
    inputs, gradients = zip(*known, strict=True)
    result: Tensor = _Known.apply(value, *inputs, *gradients)  # type: ignore[no-untyped-call]
    return result
