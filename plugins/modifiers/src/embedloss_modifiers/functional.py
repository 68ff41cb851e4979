"""Arithmetic of the modifiers: views of embeddings, layer weights, self-distillation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from embedloss.similarity import unit

LAYER_WEIGHTINGS = ("uniform", "log", "linear")


def truncate(x: Tensor, dim: int) -> Tensor:
    """The first `dim` coordinates divided by their norm; a zero vector stays 0. (..., D) -> (..., dim)."""
    return unit(x[..., :dim])


def layer_weight(weighting: str, layer: int) -> float:
    """Weight of a prior layer (0 is the embedding layer): 1, 1 / (1 + ln(1 + layer)) or 1 / (1 + layer)."""
    if weighting == "log":
        return 1 / (1 + math.log1p(layer))
    return 1 / (1 + layer) if weighting == "linear" else 1.0


def sample(count: int, size: int, generator: torch.Generator) -> list[int]:
    """`size` different indices below `count`, ascending; all of them if size is not in 1..count - 1."""
    if not 0 < size < count:
        return list(range(count))
    return sorted(torch.randperm(count, generator=generator)[:size].tolist())


def self_distillation(student: Tensor, teacher: Tensor, temperature: float, rows: int) -> Tensor:
    """KL of the softmax over coordinates, teacher without gradient, summed and divided by the number of rows.

    Args:
        student: (texts, dim) of a prior layer.
        teacher: (texts, dim) of the final layer.
        temperature: both are divided by it before the softmax, > 0.
        rows: the divisor, at least 1 is used.
    """
    wanted = (teacher.detach() / temperature).log_softmax(-1)
    found = (student / temperature).log_softmax(-1)
    return (wanted.exp() * (wanted - found)).sum() / max(rows, 1)
