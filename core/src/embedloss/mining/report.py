"""What mining did: rows, what was passed over, and how far negatives are from their positives."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np

from embedloss.convert.job import ConversionReport

SHARES = {"min": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1.0}


@dataclass
class MiningReport(ConversionReport):
    """What mining did; see `ConversionReport` for rows, drops and notes.

    Args:
        queries: different queries.
        documents: texts that were searched.
        pairs: different pairs of query and positive.
        known: pairs of query and document that could not become negatives, because the document is known as a positive.
        passed_over: filter -> candidates within the ranks that it took out.
        without: queries for which no negative was left.
        fewer: queries that have some, but fewer than were asked for.
        seconds: wall time.
    """

    queries: int = 0
    documents: int = 0
    pairs: int = 0
    known: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    without: int = 0
    fewer: int = 0
    seconds: float = 0.0
    _positive: array[float] = field(default_factory=lambda: array("f"))
    _negative: array[float] = field(default_factory=lambda: array("f"))
    _gaps: array[float] = field(default_factory=lambda: array("f"))

    def add(self, positive: float, negatives: list[float]) -> None:
        """Note the scores of a pair and its negatives."""
        self._positive.append(positive)
        self._negative.extend(negatives)
        self._gaps.extend(positive - score for score in negatives)

    @property
    def above(self) -> float:
        """Share of negatives that score at least as high as the positive they stand beside."""
        gaps = np.asarray(self._gaps)
        return float((gaps <= 0).mean()) if len(gaps) else 0.0

    def scores(self) -> dict[str, dict[str, float]]:
        """Mean and quantiles of the scores of positives and negatives, and of their difference; empty without any."""
        found = {}
        for name, values in (("positive", self._positive), ("negative", self._negative), ("difference", self._gaps)):
            numbers = np.asarray(values, dtype=np.float64)
            if not len(numbers):
                return {}
            quantiles = np.quantile(numbers, list(SHARES.values()))
            found[name] = {"mean": float(numbers.mean()), **dict(zip(SHARES, map(float, quantiles), strict=True))}
        return found

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        plain = {name: value for name, value in super().to_json().items() if not name.startswith("_")}
        return {**plain, "seconds": round(self.seconds, 1), "scores": self.scores(), "share_above_positive": self.above}
