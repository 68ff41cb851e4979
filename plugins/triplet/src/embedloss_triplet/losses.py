"""Triplet losses: given triplets, and triplets mined among the texts of a batch by their classes."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from embedloss.distributed import sum_over_processes
from embedloss.embeddings import Embeddings
from embedloss.loss import Loss, LossOutput
from embedloss.similarity import distance_name
from embedloss_triplet.functional import Rule, batch_all, batch_hard, batch_semi_hard, mined, triplet
from embedloss_triplet.plugin import BATCH_ALL, BATCH_HARD, BATCH_HARD_SOFT, BATCH_SEMI_HARD, TRIPLET

_ALIASES = {"distance_metric": "distance", "triplet_margin": "margin"}


def _checked(margin: float) -> float:
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be at least 0 and finite, got {margin}")
    return margin


class _BatchTriplet(Loss):
    """Triplets from classes: every text is an anchor, the texts of all processes are its positives and negatives."""

    parameter_aliases: ClassVar[dict[str, str]] = _ALIASES
    distance: str

    @abstractmethod
    def rule(self) -> Rule:
        """Which triplets count."""

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss; the metric `active` is the share of terms that have a gradient."""
        assert labels is not None  # check_labels has refused it
        classes = labels.long() if labels.dtype == torch.bool else labels
        value, active = mined(
            self.rule(),
            emb.own("text"),
            classes,
            self.distance,
            pool=emb.pool("text"),
            pool_labels=emb.gathered(classes),
            offset=emb.offset("text"),
            total=sum_over_processes if emb.world_size > 1 else None,
            processes=emb.world_size,
        )
        return LossOutput.of(value, active=active)


class BatchAllTripletLoss(_BatchTriplet):
    """Mean over all triplets of the batch that violate the margin.

    Args:
        distance: "euclidean", "squared-euclidean", "manhattan" or "cosine".
        margin: by how much negatives must be farther from the anchor than positives, in units of the distance, >= 0.

    Paper: Hermans, Beyer and Leibe 2017, In Defense of the Triplet Loss for Person Re-Identification, arXiv 1703.07737.
    """

    spec = BATCH_ALL

    def __init__(self, distance: Any = "euclidean", margin: float = 5.0) -> None:
        super().__init__()
        self.distance, self.margin = distance_name(distance), _checked(margin)

    def rule(self) -> Rule:
        """Every triplet that violates the margin."""
        return partial(batch_all, margin=self.margin)


class BatchHardTripletLoss(_BatchTriplet):
    """For every anchor, its farthest positive and its nearest negative.

    Args:
        distance: "euclidean", "squared-euclidean", "manhattan" or "cosine".
        margin: by how much the nearest negative must be farther than the farthest positive, >= 0.

    Paper: Hermans, Beyer and Leibe 2017, In Defense of the Triplet Loss for Person Re-Identification, arXiv 1703.07737.
    """

    spec = BATCH_HARD

    def __init__(self, distance: Any = "euclidean", margin: float = 5.0) -> None:
        super().__init__()
        self.distance, self.margin = distance_name(distance), _checked(margin)

    def rule(self) -> Rule:
        """The hardest triplet of each anchor, with a hinge."""
        return partial(batch_hard, margin=self.margin)


class BatchHardSoftMarginTripletLoss(_BatchTriplet):
    """For every anchor, its farthest positive and its nearest negative, with softplus instead of a margin.

    Args:
        distance: "euclidean", "squared-euclidean", "manhattan" or "cosine".

    Paper: Hermans, Beyer and Leibe 2017, In Defense of the Triplet Loss for Person Re-Identification, arXiv 1703.07737.
    """

    spec = BATCH_HARD_SOFT

    def __init__(self, distance: Any = "euclidean") -> None:
        super().__init__()
        self.distance = distance_name(distance)

    def rule(self) -> Rule:
        """The hardest triplet of each anchor, with softplus."""
        return partial(batch_hard, margin=None)


class BatchSemiHardTripletLoss(_BatchTriplet):
    """For every positive pair, the nearest negative beyond the positive, else the farthest negative.

    Args:
        distance: "euclidean", "squared-euclidean", "manhattan" or "cosine".
        margin: by how much that negative must be farther than the positive, >= 0.

    Paper: Schroff, Kalenichenko and Philbin 2015, FaceNet, arXiv 1503.03832.
    """

    spec = BATCH_SEMI_HARD

    def __init__(self, distance: Any = "euclidean", margin: float = 5.0) -> None:
        super().__init__()
        self.distance, self.margin = distance_name(distance), _checked(margin)

    def rule(self) -> Rule:
        """One triplet for each positive pair."""
        return partial(batch_semi_hard, margin=self.margin)


class TripletLoss(Loss):
    """Mean of max(d(anchor, positive) - d(anchor, negative) + margin, 0) over the given triplets.

    Args:
        distance: "euclidean", "squared-euclidean", "manhattan" or "cosine".
        margin: by how much the negative must be farther from the anchor than the positive, >= 0.

    Paper: Schroff, Kalenichenko and Philbin 2015, FaceNet, arXiv 1503.03832.
    """

    spec = TRIPLET
    parameter_aliases: ClassVar[dict[str, str]] = _ALIASES

    def __init__(self, distance: Any = "euclidean", margin: float = 5.0) -> None:
        super().__init__()
        self.distance, self.margin = distance_name(distance), _checked(margin)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss; the metric `active` is the share of triplets that violate the margin."""
        rows = emb.rows_of("negative")  # an anchor with several negatives is in as many triplets
        anchor, positive = emb.own("anchor")[rows], emb.own("positive")[rows]
        terms = triplet(anchor, positive, emb.own("negative"), self.margin, self.distance)
        # Processes may have different numbers of triplets: the mean over all of them, not the mean of means.
        count = max(len(emb.pool_rows_of("negative")), 1)
        return LossOutput.of(terms.sum() * (emb.world_size / count), active=(terms > 0).sum() / max(len(terms), 1))
