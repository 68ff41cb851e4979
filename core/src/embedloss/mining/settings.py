"""Which neighbours of a query become its negatives. Plain data; imports no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from embedloss.errors import EmbedlossError

OUTPUTS: dict[str, tuple[str, ...]] = {
    "n-tuples": ("n-tuple",),
    "n-tuples+scores": ("n-tuple-scores",),
    "triplets": ("triplet",),
    "pairs+binary": ("labeled-pair", "labelled-pair"),
    "listwise": ("labeled-list", "labelled-list"),
}
"""Format that can be written -> other names under which it is known."""

STRATEGIES = ("top", "random")
INDEXES = ("exact", "faiss")
WIDER = 10  # candidates looked at for each negative, where some of them will be passed over


def output_name(name: str) -> str:
    """The format of that name; E108 for one that mining does not write."""
    key = name.strip().lower().replace("_", "-")
    for output, others in OUTPUTS.items():
        if key in (output, *others):
            return output
    raise EmbedlossError("E108", f"mining writes {', '.join(OUTPUTS)}; got '{name}'. `embedloss convert` makes others.")


@dataclass(frozen=True)
class MiningSettings:
    """Which neighbours become negatives. Names as in sentence-transformers' `mine_hard_negatives`.

    Neighbours are ranked by similarity to the query, the nearest first, without its known positives; ranks count from 0.

    Args:
        output_format: n-tuples, n-tuples+scores, triplets, pairs+binary or listwise.
        num_negatives: of each query, at most.
        range_min: the nearest neighbours that are passed over.
        range_max: only neighbours of a lower rank; None is `range_min` + `num_negatives`, ten times as many where filters or
            random sampling need a choice.
        max_score: no neighbour with a higher score.
        min_score: no neighbour with a lower score.
        absolute_margin: the score must be this much lower than that of the query's positive, the worst where it has several.
        relative_margin: the same as a share of the positive's score: 0.05 means at most 95 % of it.
        sampling_strategy: "top" takes the best scores, "random" draws from all that are left.
        seed: of the drawing.
        index: "exact", or "faiss" for its flat index.
    """

    output_format: str = "n-tuples"
    num_negatives: int = 3
    range_min: int = 0
    range_max: int | None = None
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling_strategy: str = "top"
    seed: int = 42
    index: str = "exact"

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_format", output_name(self.output_format))
        self.validate()

    @property
    def filters(self) -> bool:
        """Whether some neighbours are passed over for their score."""
        wanted = (self.max_score, self.min_score, self.absolute_margin, self.relative_margin)
        return any(value is not None for value in wanted)

    @property
    def depth(self) -> int:
        """Neighbours that are looked for: `range_max`, or its default."""
        if self.range_max is not None:
            return self.range_max
        wider = WIDER if self.filters or self.sampling_strategy == "random" else 1
        return self.range_min + self.num_negatives * wider

    def validate(self) -> None:
        """E108 for every setting that is out of range, all at once."""
        faults = []
        whole = {"num_negatives": 1, "range_min": 0, "range_max": 1}
        for name, least in whole.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                faults.append(f"{option(name)} must be a whole number from {least}, got {value!r}")
        for name in ("max_score", "min_score", "absolute_margin", "relative_margin"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                faults.append(f"{option(name)} must be a number, got {value!r}")
            elif name.endswith("margin") and value < 0:
                faults.append(f"{option(name)} must not be negative, got {value:g}")
            elif name == "relative_margin" and value > 1:
                faults.append(f"{option(name)} is a share of the positive's score (0.05 is 5 %), got {value:g}")
        for name, allowed in (("sampling_strategy", STRATEGIES), ("index", INDEXES)):
            if getattr(self, name) not in allowed:
                faults.append(f"{option(name)} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")
        if not faults and self.range_max is not None and self.range_max - self.range_min < self.num_negatives:
            faults.append(
                f"--range-max {self.range_max} leaves {max(self.range_max - self.range_min, 0)} neighbours after --range-min "
                f"{self.range_min}, too few for --num-negatives {self.num_negatives}"
            )
        if not faults and self.max_score is not None and self.min_score is not None and self.min_score > self.max_score:
            faults.append(f"--min-score {self.min_score:g} is above --max-score {self.max_score:g}")
        if faults:
            raise EmbedlossError("E108", "\n  ".join(["the settings cannot be used:", *faults] if len(faults) > 1 else faults))

    def to_json(self) -> dict[str, Any]:
        """What differs from the default, and what always matters."""
        always = ("num_negatives", "range_min", "sampling_strategy", "seed", "index")
        found = {k: v for k, v in asdict(self).items() if k != "output_format" and (v is not None or k in always)}
        return {**found, "range_max": self.depth}


def option(name: str) -> str:
    """On the command line."""
    return "--" + name.replace("_", "-")
