"""embedloss plugin: losses on similarity scores: cosine, CoSENT, AnglE."""

from __future__ import annotations

from typing import Any

__all__ = ["AnglELoss", "CoSENTLoss", "CosineSimilarityLoss"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from embedloss_similarity import losses

        return getattr(losses, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
