"""embedloss plugin: multiple negatives ranking, GIST and mega-batch margin losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedloss_ranking.losses import (
        CachedCrossMultipleNegativesRankingLoss,
        CachedGISTEmbedLoss,
        CachedMultipleNegativesRankingLoss,
        CachedMultipleNegativesSymmetricRankingLoss,
        CrossMultipleNegativesRankingLoss,
        GISTEmbedLoss,
        MegaBatchMarginLoss,
        MultipleNegativesRankingLoss,
        MultipleNegativesSymmetricRankingLoss,
    )

__all__ = [
    "CachedCrossMultipleNegativesRankingLoss",
    "CachedGISTEmbedLoss",
    "CachedMultipleNegativesRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "CrossMultipleNegativesRankingLoss",
    "GISTEmbedLoss",
    "MegaBatchMarginLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
]


def __getattr__(name: str) -> Any:
    """The classes, imported on first use: listing losses imports this package and must not import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from embedloss_ranking import losses

    return getattr(losses, name)
