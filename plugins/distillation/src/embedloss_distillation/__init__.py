"""embedloss plugin: distillation losses: embeddings, scores, margins, distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedloss_distillation.losses import DistillKLDivLoss, EmbedDistillLoss, MarginMSELoss, MSELoss, ScoreMSELoss

__all__ = ["DistillKLDivLoss", "EmbedDistillLoss", "MSELoss", "MarginMSELoss", "ScoreMSELoss"]


def __getattr__(name: str) -> Any:
    """The classes, imported on first use: listing losses imports this package and must not import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from embedloss_distillation import losses

    return getattr(losses, name)
