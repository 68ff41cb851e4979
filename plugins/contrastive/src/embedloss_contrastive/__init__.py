"""embedloss plugin: contrastive losses and contrastive tension."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedloss_contrastive.losses import (
        ContrastiveLoss,
        ContrastiveTensionLoss,
        ContrastiveTensionLossInBatchNegatives,
        OnlineContrastiveLoss,
    )

__all__ = [
    "ContrastiveLoss",
    "ContrastiveTensionLoss",
    "ContrastiveTensionLossInBatchNegatives",
    "OnlineContrastiveLoss",
]


def __getattr__(name: str) -> Any:
    """The classes, imported on first use: listing losses imports this package and must not import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from embedloss_contrastive import losses

    return getattr(losses, name)
