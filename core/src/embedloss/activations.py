"""Activations by name, for scores and cosines before they enter a loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": _identity,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}


def chosen(value: Any, choices: Collection[str], parameter: str, aliases: Mapping[str, str] | None = None) -> str:
    """Which of `choices` a name, a function or class of that name, or a module without settings stands for.

    Args:
        value: "sigmoid", `torch.sigmoid`, `nn.Sigmoid` or `nn.Sigmoid()`.
        aliases: further names, such as {"MSELoss": "mse"}; only strings, functions and classes, because an instance of a
            class with settings would lose them.

    Raises:
        ValueError: names what is allowed.
    """
    given = value if isinstance(value, str) else getattr(value, "__name__", "")
    name = given.rsplit(".", 1)[-1]
    name = (aliases or {}).get(name, name) if name else type(value).__name__
    found = name.lower().replace("_", "-")
    if found not in choices:
        raise ValueError(f"{parameter} must be one of {', '.join(choices)}; got {value!r}")
    return found


def activation_name(value: Any, parameter: str = "activation_fn") -> str:
    """The name of an activation given by name, or as function or module of torch: identity, sigmoid, tanh or relu."""
    return chosen(value, ACTIVATIONS, parameter)
