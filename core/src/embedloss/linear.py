"""Losses with a linear map of their own, whose sizes may become known only from the model, the data or a saved state."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embedloss.errors import EmbedlossError
from embedloss.loss import Loss


class LinearLoss(Loss):
    """A loss with one linear map as own weight, kept under `linear_name`: None until `make_linear`, or until a state is loaded.

    A subclass sets `linear_name`.
    """

    linear_name: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.register_module(self.linear_name, None)

    @property
    def linear(self) -> nn.Linear | None:
        """The map, or None."""
        found: nn.Linear | None = getattr(self, self.linear_name)
        return found

    def make_linear(
        self, inputs: int, outputs: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> nn.Linear:
        """Make the map, with the start of nn.Linear: equal on every process with the same seed, whatever was drawn before."""
        generator = torch.Generator().manual_seed(torch.initial_seed())
        linear = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            for parameter in (linear.weight, linear.bias):
                parameter.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        linear.to(device=device, dtype=dtype)
        setattr(self, self.linear_name, linear)
        return linear

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        weight: Tensor | None = state_dict.get(f"{prefix}{self.linear_name}.weight")
        if weight is not None and self.linear is None:
            self.make_linear(weight.shape[1], weight.shape[0], weight.device, weight.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def save_linear(self, path: str | os.PathLike[str]) -> None:
        """Write the map as safetensors (`weight`, `bias`). ValueError if there is none."""
        from safetensors.torch import save_file

        if self.linear is None:
            wanted = "give its output size, and prepare the loss or use it once: its input size is the model's"
            raise ValueError(f"there is no {self.linear_name} to save; {wanted}.")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in self.linear.state_dict().items()}, str(path))

    def load_linear(self, path: str | os.PathLike[str], outputs: int | None = None) -> None:
        """Read a map that `save_linear` wrote.

        Args:
            path: the file.
            outputs: the output size that the loss was made for; None: any.

        Raises:
            EmbedlossError: E301 if the file cannot be read.
            ValueError: its sizes differ from those of the loss.
        """
        from safetensors.torch import load_file

        try:
            state = load_file(str(path))
            rows, columns = state["weight"].shape
        except Exception as exception:  # safetensors has errors of its own for every kind of damage
            raise EmbedlossError("E301", f"no {self.linear_name} can be read from '{path}': {exception}") from exception
        there = self.linear
        if outputs not in (None, rows) or (there is not None and there.in_features != columns):
            size = there.in_features if there is not None else "any"
            raise ValueError(f"'{path}' maps {columns} to {rows} dimensions, this loss {size} to {outputs}")
        (there or self.make_linear(columns, rows, dtype=state["weight"].dtype)).load_state_dict(state)


def project(x: Tensor, weight: Tensor, bias: Tensor, width: int | None = None, parts: int = 1) -> Tensor:
    """A linear map on embeddings that are cut to their first coordinates: (rows, parts * d) -> (rows, width).

    Args:
        x: (rows, parts * d), vectors side by side.
        weight: (outputs, parts * dim) with dim >= d; of each part the first d inputs are used.
        bias: (outputs,).
        width: how many of the first outputs are wanted; None: all.
        parts: number of vectors.
    """
    dtype = torch.promote_types(x.dtype, weight.dtype)
    used = weight[:width].view(-1, parts, weight.shape[1] // parts)[:, :, : x.shape[1] // parts].flatten(1)
    return nn.functional.linear(x.to(dtype), used.to(dtype), bias[:width].to(dtype))
