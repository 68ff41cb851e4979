"""Losses on the similarity of two texts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from embedloss.activations import ACTIVATIONS
from embedloss.embeddings import Embeddings
from embedloss.loss import Loss, LossOutput
from embedloss.similarity import pairwise
from embedloss.spec import LossSpec
from embedloss.validate import must_be, named
from embedloss_similarity.functional import angle_similarity, cosent, cosent_of_two
from embedloss_similarity.plugin import ANGLE, COSENT, COSINE_SIMILARITY

LOSS_FUNCTIONS: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}
_FIELD_NAMES = {
    "MSELoss": "mse",
    "mse_loss": "mse",
    "L1Loss": "mae",
    "l1_loss": "mae",
    "HuberLoss": "huber",
    "huber_loss": "huber",
}


class CosineSimilarityLoss(Loss):
    """The cosine of two texts against a score (Reimers and Gurevych 2019, arXiv 1908.10084).

    Args:
        loss_fct: what compares cosine and label: "mse", "mae" or "huber" (with delta 1).
        cos_score_transformation: put on the cosine first: "identity", "sigmoid", "tanh" or "relu".
    """

    spec = COSINE_SIMILARITY

    def __init__(self, loss_fct: str = "mse", cos_score_transformation: str = "identity") -> None:
        super().__init__()
        self.keep(locals(), loss_fct=named(LOSS_FUNCTIONS, _FIELD_NAMES), cos_score_transformation=named(ACTIVATIONS))
        self.bind_spec(type(self).spec)

    def bind_spec(self, spec: LossSpec) -> None:
        """The range of labels holds for bare cosines only."""
        self.spec = spec if self.cos_score_transformation == "identity" else replace(spec, label_range=None)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> Tensor:
        """The mean over the rows of all processes."""
        assert labels is not None
        if self.spec.label_range is not None:
            lowest, highest = self.spec.label_range
            found = "takes scores from -1 to 1; row {row} of this batch has {value}. "
            repair = "Type --scale-labels, or use cosent, which needs only the order."
            self.refuse((labels < lowest) | (labels > highest), found + repair, labels)
        cosines = pairwise("cosine", emb.own("first"), emb.own("second"))
        predicted = ACTIVATIONS[self.cos_score_transformation](cosines)
        return emb.joint_mean(LOSS_FUNCTIONS[self.loss_fct](predicted, labels.to(predicted.dtype), reduction="none"))


class CoSENTLoss(Loss):
    """Pairs with a higher label should be more similar than pairs with a lower one (doi 10.1109/TASLP.2024.3402087).

    Args:
        scale: factor of the similarities, an inverse temperature.
        similarity_fct: "cosine", "dot", "euclidean" or "manhattan" (distances are negated).
    """

    spec = COSENT

    def __init__(self, scale: float = 20.0, similarity_fct: Any = "cosine") -> None:
        super().__init__()
        self.keep(locals(), scale=must_be("positive and finite", lambda value: 0 < value < math.inf))

    def similarity(self, x: Tensor, y: Tensor) -> Tensor:
        """(rows,) similarities of x (rows, dim) and y (rows, dim)."""
        return pairwise(self.similarity_fct, x, y)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> Tensor | LossOutput:
        """One value for the pairs of all processes; `active` is 1 where two labels differ, else 0."""
        assert labels is not None
        labels = emb.gathered(labels.int() if labels.dtype == torch.bool else labels)
        scores = emb.gathered(self.similarity(emb.own("first"), emb.own("second")))
        return LossOutput.of(cosent(scores * self.scale, labels), active=(labels != labels[:1]).any().to(scores.dtype))


class AnglELoss(CoSENTLoss):
    """CoSENT on the angle similarity in complex space (arXiv 2309.12871), for scored pairs, triplets and n-tuples.

    Args:
        scale: factor of the similarities, an inverse temperature.
    """

    spec = ANGLE

    def __init__(self, scale: float = 20.0) -> None:
        super().__init__(scale)
        self.similarity_fct = "angle"

    def similarity(self, x: Tensor, y: Tensor) -> Tensor:
        """(rows,) angle similarities of x (rows, dim) and y (rows, dim)."""
        return angle_similarity(x, y)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> Tensor | LossOutput:
        """As CoSENT; of tuples, every positive pair should be more similar than every negative pair of all processes."""
        if labels is not None:
            return super().compute(emb, labels)
        anchor = emb.pool("anchor")
        high = self.similarity(anchor, emb.pool("positive"))
        low = self.similarity(anchor[emb.pool_rows_of("negative")], emb.pool("negative"))
        active = float(len(low) > 0 and len(high) > 0)
        return LossOutput.of(cosent_of_two(low * self.scale, high * self.scale), active=torch.tensor(active))
