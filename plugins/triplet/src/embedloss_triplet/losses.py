"""Triplet losses: given triplets, and triplets mined among the texts of a batch by their classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from embedloss.embeddings import Embeddings
from embedloss.loss import Loss, LossOutput, share_of
from embedloss.validate import not_negative
from embedloss_triplet.functional import Mined, Rule, batch_all, batch_hard, batch_semi_hard, mined, triplet
from embedloss_triplet.plugin import BATCH_ALL, BATCH_HARD, BATCH_HARD_SOFT, BATCH_SEMI_HARD, TRIPLET


class _MarginLoss(Loss):
    """A loss of distances and a margin."""

    parameter_aliases: ClassVar[dict[str, str]] = {"distance_metric": "distance", "triplet_margin": "margin"}

    def __init__(self, distance: Any = "euclidean", margin: float = 5.0) -> None:
        super().__init__()
        self.keep(locals(), margin=not_negative)


class _BatchTriplet(_MarginLoss):
    """Triplets from classes: every text is an anchor, the texts of all processes are its positives and negatives.

    A subclass sets `finds`, the function that finds the triplets that count.
    """

    finds: ClassVar[Callable[..., Mined]]

    def rule(self) -> Rule:
        """Which triplets count."""
        return partial(type(self).finds, margin=self.margin)

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
    finds = staticmethod(batch_all)


class BatchHardTripletLoss(_BatchTriplet):
    """For every anchor, its farthest positive and its nearest negative.

    Args:
        distance: "euclidean", "squared-euclidean", "manhattan" or "cosine".
        margin: by how much the nearest negative must be farther than the farthest positive, >= 0.

    Paper: Hermans, Beyer and Leibe 2017, In Defense of the Triplet Loss for Person Re-Identification, arXiv 1703.07737.
    """

    spec = BATCH_HARD
    finds = staticmethod(batch_hard)


class BatchHardSoftMarginTripletLoss(_BatchTriplet):
    """For every anchor, its farthest positive and its nearest negative, with softplus instead of a margin.

    Args:
        distance: "euclidean", "squared-euclidean", "manhattan" or "cosine".

    Paper: Hermans, Beyer and Leibe 2017, In Defense of the Triplet Loss for Person Re-Identification, arXiv 1703.07737.
    """

    spec = BATCH_HARD_SOFT

    def __init__(self, distance: Any = "euclidean") -> None:
        Loss.__init__(self)
        self.keep(locals())

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
    finds = staticmethod(batch_semi_hard)


class TripletLoss(_MarginLoss):
    """Mean of max(d(anchor, positive) - d(anchor, negative) + margin, 0) over the given triplets.

    Args:
        distance: "euclidean", "squared-euclidean", "manhattan" or "cosine".
        margin: by how much the negative must be farther from the anchor than the positive, >= 0.

    Paper: Schroff, Kalenichenko and Philbin 2015, FaceNet, arXiv 1503.03832.
    """

    spec = TRIPLET

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss; the metric `active` is the share of triplets that violate the margin."""
        rows = emb.rows_of("negative")  # an anchor with several negatives is in as many triplets
        anchor, positive = emb.own("anchor")[rows], emb.own("positive")[rows]
        terms = triplet(anchor, positive, emb.own("negative"), self.margin, self.distance)
        return LossOutput.of(emb.joint_mean(terms, "negative"), active=share_of(terms > 0))
