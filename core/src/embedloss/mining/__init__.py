"""Hard negatives for pairs: `mine` finds texts that a model takes for answers and that are none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedloss.mining.settings import MiningSettings

if TYPE_CHECKING:
    from embedloss.mining.job import Mined, mine
    from embedloss.mining.report import MiningReport

__all__ = ["Mined", "MiningReport", "MiningSettings", "mine"]


def __getattr__(name: str) -> Any:
    """What loads torch comes when it is used."""
    if name in ("Mined", "mine"):
        from embedloss.mining import job

        return getattr(job, name)
    if name == "MiningReport":
        from embedloss.mining.report import MiningReport

        return MiningReport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
