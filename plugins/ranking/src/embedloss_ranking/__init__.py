"""embedloss plugin: multiple negatives ranking, GIST and mega-batch margin losses."""

from __future__ import annotations

from typing import Any

from embedloss_ranking.plugin import SPECS

__all__ = sorted({spec.target.partition(":")[2] for spec in SPECS})


def __getattr__(name: str) -> Any:
    if name in __all__:
        from embedloss_ranking import losses

        return getattr(losses, name)
    raise AttributeError(f"module 'embedloss_ranking' has no attribute '{name}'")
