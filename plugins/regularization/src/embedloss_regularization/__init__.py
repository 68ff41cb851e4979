"""embedloss plugin: regularisers of the embedding space."""

from __future__ import annotations

from typing import Any

__all__ = ["GlobalOrthogonalRegularizationLoss"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from embedloss_regularization import losses

        return getattr(losses, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
