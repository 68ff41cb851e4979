"""embedloss plugin: listwise and pairwise learning-to-rank losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedloss_learning_to_rank.losses import (
        ADRMSELoss,
        LambdaLoss,
        ListMLELoss,
        ListNetLoss,
        PListMLELambdaWeight,
        PListMLELoss,
        RankNetLoss,
    )

__all__ = [
    "ADRMSELoss",
    "LambdaLoss",
    "ListMLELoss",
    "ListNetLoss",
    "PListMLELambdaWeight",
    "PListMLELoss",
    "RankNetLoss",
]


def __getattr__(name: str) -> Any:
    """The classes, imported on first use: listing losses imports this package and must not import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from embedloss_learning_to_rank import losses

    return getattr(losses, name)
