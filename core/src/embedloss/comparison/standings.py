"""Where losses stand, and which differences are no more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Standing:
    """Where a loss stands: runs with the most steps it reached.

    Args:
        loss: the expression.
        steps: of these runs; fewer than the budget where halving stopped it.
        values: the metric, one a seed.
        seconds: of training, mean.
        memory: bytes, the largest peak.
        complete: these are the steps of the whole budget.
        noise: the difference from the best is within noise; None where nothing is known about it.
        error: why it could not be trained.
    """

    loss: str
    steps: int = 0
    values: list[float] = field(default_factory=list)
    seconds: float = 0.0
    memory: int = 0
    noise: bool | None = None
    complete: bool = True
    error: str = ""

    @property
    def mean(self) -> float:
        """Of the metric."""
        return sum(self.values) / len(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds."""
        if len(self.values) < 2:
            return None
        return math.sqrt(sum((v - self.mean) ** 2 for v in self.values) / (len(self.values) - 1))


def mark_noise(standings: Sequence[Standing]) -> None:
    """Whether each mean differs from the best by less than chance would, given the spread over the seeds.

    The spread is pooled over all losses that reached the whole budget; the least significant difference at 95 % (Student's t).
    """
    from scipy.stats import t

    mine = [s for s in standings if s.values and s.complete]
    freedom = sum(len(s.values) - 1 for s in mine)
    if not freedom:
        return
    pooled = sum((len(s.values) - 1) * (s.spread or 0.0) ** 2 for s in mine) / freedom
    best = mine[0]
    for each in mine:
        least = float(t.ppf(0.975, freedom)) * math.sqrt(pooled * (1 / len(best.values) + 1 / len(each.values)))
        each.noise = abs(best.mean - each.mean) <= least
