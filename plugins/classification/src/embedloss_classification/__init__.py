"""embedloss plugin: classification losses: softmax, binary cross-entropy, cross-entropy."""

from __future__ import annotations

from typing import Any

__all__ = ["BinaryCrossEntropyLoss", "CrossEntropyLoss", "SoftmaxLoss"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from embedloss_classification import losses

        return getattr(losses, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
