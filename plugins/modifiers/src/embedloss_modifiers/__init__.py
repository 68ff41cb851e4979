"""embedloss plugin: Matryoshka and adaptive-layer training round any loss."""

from __future__ import annotations

from typing import Any

__all__ = ["AdaptiveLayerLoss", "Matryoshka2dLoss", "MatryoshkaLoss"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from embedloss_modifiers import losses

        return getattr(losses, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
