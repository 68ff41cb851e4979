"""How the steps of a run are divided among several data sets. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from embedloss.errors import EmbedlossError

Mix = Literal["auto", "proportional", "round-robin", "weights", "temperature"]
Stop = Literal["first-exhausted", "all-exhausted"]


def shares(mix: Mix, batches: Sequence[int], weights: Sequence[float | None], temperature: float | None = None) -> list[float]:
    """The share of the steps of each data set; they sum to 1.

    Args:
        mix: "proportional" to the number of batches; "round-robin" in equal parts; by "weights"; by "temperature" T,
            proportional to batches ** (1 / T), as in multilingual pretraining (Arivazhagan et al. 2019, arXiv 1907.05019);
            "auto" is by weights where there are any, else proportional.
        batches: of one pass over each data set.
        weights: one a data set, or None.
        temperature: T, at least 1; 1 is proportional, and large values come near equal parts.

    Raises:
        EmbedlossError: E401 for weights that are missing, not positive or would be ignored, and for a temperature below 1.
    """
    given = [w for w in weights if w is not None]
    if mix == "auto":
        mix = "weights" if given else "temperature" if temperature is not None else "proportional"
    if any(not (np.isfinite(w) and w > 0) for w in given):
        raise EmbedlossError("E401", f"the weight of a data set must be positive, got {min(given):g}.")
    if given and mix != "weights":
        raise EmbedlossError("E401", f"--mix {mix} reads no weights. Leave the weights out, or type --mix weights.")
    if temperature is not None and mix != "temperature":
        raise EmbedlossError("E401", f"--mix {mix} reads no temperature. Type --mix temperature.")
    if mix == "weights":
        if len(given) < len(weights):
            raise EmbedlossError("E401", f"{len(given)} of {len(weights)} data sets have a weight; give one to each.")
        parts = np.asarray(given, dtype=np.float64)
    elif mix == "temperature":
        if temperature is None or not 1 <= temperature < np.inf:
            found = "none" if temperature is None else f"{temperature:g}"
            raise EmbedlossError("E401", f"--mix temperature needs --mix-temperature T of at least 1, such as 2; got {found}.")
        parts = np.asarray(batches, dtype=np.float64) ** (1 / temperature)
    else:
        parts = np.ones(len(batches)) if mix == "round-robin" else np.asarray(batches, dtype=np.float64)
    return [float(p) for p in parts / parts.sum()]


def counts(batches: Sequence[int], parts: Sequence[float], stop: Stop) -> list[int]:
    """Batches of each data set in one epoch.

    Args:
        batches: of one pass over each data set.
        parts: their shares of the steps.
        stop: "first-exhausted": the epoch ends with the data set that runs out first, no row is used twice, and the next
            epoch goes on with the rows that were left. "all-exhausted": the epoch lasts until every row of every data set was
            used; data sets that run out before begin again in a new order.
    """
    lengths = [n / p for n, p in zip(batches, parts, strict=True)]
    if stop == "first-exhausted":
        total = min(lengths)
        return [max(1, min(n, round(p * total))) for n, p in zip(batches, parts, strict=True)]
    total = max(lengths)
    return [max(n, round(p * total)) for n, p in zip(batches, parts, strict=True)]
