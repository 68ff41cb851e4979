"""Activation functions that are computed again in the backward pass rather than kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# By name, as transformers has classes of its own. Each keeps its input for its own backward pass, and is cheap.
CHEAP = ("GELU", "GELUActivation", "GELUTanh", "SiLU", "SiLUActivation")
# Told of every tensor that is kept: torch runs the innermost hooks only, so counting ones outside would see nothing.
observers: list[Callable[[Tensor], Any]] = []


class Again(NamedTuple):
    """What is kept in place of a function's output: enough to compute it again."""

    function: nn.Module
    input: Tensor
    shape: torch.Size


@contextlib.contextmanager
def lean(encoder: nn.Module) -> Iterator[None]:
    """Within, what autograd keeps of an encoder's forward pass is less by the outputs of its activation functions.

    The layer behind such a function keeps its input, and the function keeps its own: of a transformer's activations the former
    are a quarter. The backward pass computes them again from the latter, to the same bits.

    Args:
        encoder: any module; only functions that are modules of it, of a class in `CHEAP`, are looked at.
    """
    latest: list[tuple[nn.Module, Tensor, Tensor, int]] = []  # alive, so that no other tensor can have the output's address

    def note(function: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        latest[:] = [(function, inputs[0].detach(), output, output._version)] if output.is_contiguous() else []

    def pack(tensor: Tensor) -> Tensor | Again:
        kept: Tensor | Again = tensor.detach()  # an output that its own function keeps would keep the graph alive for ever
        for function, before, output, version in latest:
            same = tensor.data_ptr() == output.data_ptr() and tensor.numel() == output.numel() and tensor.dtype == output.dtype
            if same and tensor.is_contiguous() and output._version == version:
                kept = Again(function, before, tensor.shape)
        for observe in observers:
            observe(kept.input if isinstance(kept, Again) else kept)
        return kept

    def unpack(kept: Tensor | Again) -> Tensor:
        if not isinstance(kept, Again):
            return kept
        with torch.no_grad():
            output: Tensor = kept.function.forward(kept.input)
        return output.view(kept.shape)

    hooks: list[Any] = [m.register_forward_hook(note) for m in encoder.modules() if type(m).__name__ in CHEAP]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        latest.clear()
        for hook in hooks:
            hook.remove()
