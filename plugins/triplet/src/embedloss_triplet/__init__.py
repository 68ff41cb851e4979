"""embedloss plugin: triplet losses: given triplets and mined in the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedloss_triplet.losses import (
        BatchAllTripletLoss,
        BatchHardSoftMarginTripletLoss,
        BatchHardTripletLoss,
        BatchSemiHardTripletLoss,
        TripletLoss,
    )

__all__ = [
    "BatchAllTripletLoss",
    "BatchHardSoftMarginTripletLoss",
    "BatchHardTripletLoss",
    "BatchSemiHardTripletLoss",
    "TripletLoss",
]


def __getattr__(name: str) -> Any:
    """The classes, imported on first use: listing losses imports this package and must not import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from embedloss_triplet import losses

    return getattr(losses, name)
