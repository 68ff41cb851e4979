"""Contrastive losses of labelled pairs, and contrastive tension between two copies of the encoder."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embedloss.embeddings import Embeddings
from embedloss.errors import EmbedlossError
from embedloss.loss import Loss, LossOutput, Requirements
from embedloss.similarity import distance_name, pairwise_distance, similarity_name
from embedloss_contrastive.functional import (
    contrastive,
    contrastive_tension,
    draw_partners,
    online_contrastive,
    own_match,
)
from embedloss_contrastive.plugin import CONTRASTIVE, CT, CT_IN_BATCH, ONLINE_CONTRASTIVE


def _is_one(labels: Tensor | None, name: str) -> Tensor:
    """Labels 0 and 1 as bool; E105 for any other value."""
    assert labels is not None  # check_labels has refused it
    bad = (labels != 0) & (labels != 1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise EmbedlossError(
            "E105", f"'{name}' takes labels 0 and 1; the label of row {row + 1} of this batch is {labels[row].item():g}."
        )
    return labels == 1


def _checked(margin: float) -> float:
    if not 0 < margin < math.inf:
        raise ValueError(f"margin must be greater than 0 and finite, got {margin}")
    return margin


class ContrastiveLoss(Loss):
    """Pairs that belong together are drawn together, others pushed apart up to a margin.

    Args:
        distance: "cosine", "euclidean", "squared-euclidean" or "manhattan".
        margin: distance beyond which pairs with label 0 have no gradient, > 0.
        reduction: "mean" or "sum" over rows.

    Paper: Hadsell, Chopra and LeCun 2006, Dimensionality Reduction by Learning an Invariant Mapping.
    """

    spec = CONTRASTIVE
    parameter_aliases: ClassVar[dict[str, str]] = {"distance_metric": "distance", "size_average": "reduction"}

    def __init__(self, distance: Any = "cosine", margin: float = 0.5, reduction: str = "mean") -> None:
        super().__init__()
        self.distance, self.margin = distance_name(distance), _checked(margin)
        if isinstance(reduction, bool):  # under its other name, size_average
            reduction = "mean" if reduction else "sum"
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        self.reduction = reduction

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss; the metric `active` is the share of pairs that have a gradient."""
        same = _is_one(labels, self.spec.name)
        terms = contrastive(pairwise_distance(self.distance, emb.own("first"), emb.own("second")), same, self.margin)
        # Processes may have different numbers of rows: the mean over all rows, not the mean of means.
        count = max(emb.pool_size, 1) if self.reduction == "mean" else 1
        return LossOutput.of(terms.sum() * (emb.world_size / count), active=(terms > 0).sum() / max(len(terms), 1))


class OnlineContrastiveLoss(Loss):
    """The contrastive loss of the hard pairs of a batch only, summed.

    Args:
        distance: "cosine", "euclidean", "squared-euclidean" or "manhattan".
        margin: distance beyond which pairs with label 0 have no gradient, > 0.
    """

    spec = ONLINE_CONTRASTIVE
    parameter_aliases: ClassVar[dict[str, str]] = {"distance_metric": "distance"}

    def __init__(self, distance: Any = "cosine", margin: float = 0.5) -> None:
        super().__init__()
        self.distance, self.margin = distance_name(distance), _checked(margin)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss of the joint batch, on every process; the metric `active` is the share of pairs that have a gradient."""
        same = emb.gathered(_is_one(labels, self.spec.name).long()) == 1
        distances = pairwise_distance(self.distance, emb.pool("first"), emb.pool("second"))
        terms, active = online_contrastive(distances, same, self.margin)
        return LossOutput.of(terms.sum(), active=active.sum() / max(len(active), 1))


class ContrastiveTensionLoss(Loss):
    """Two copies of the encoder learn to agree on equal texts and to disagree on different ones. No labels are needed.

    Args:
        pos_neg_ratio: with single texts, every text makes that many pairs: one with itself, the others with other texts of the
            batch, drawn anew each step; >= 1.

    Paper: Carlsson et al. 2021, Semantic Re-tuning with Contrastive Tension.
    """

    spec = CT

    def __init__(self, pos_neg_ratio: int = 8) -> None:
        super().__init__()
        if isinstance(pos_neg_ratio, bool) or int(pos_neg_ratio) != pos_neg_ratio or pos_neg_ratio < 1:
            raise ValueError(f"pos_neg_ratio must be an integer of at least 1, got {pos_neg_ratio!r}")
        self.pos_neg_ratio = pos_neg_ratio

    def requires(self) -> Requirements:
        """The trainable copy of the encoder."""
        return Requirements(twin=True)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The sum over pairs; the metric `positives` is the share of pairs of equal texts."""
        scores, same = self._drawn(emb) if emb.roles == ("text",) else self._given(emb, labels)
        value = contrastive_tension(scores, same).sum() * emb.world_size  # a sum: its mean over processes is the joint sum
        return LossOutput.of(value, positives=same.sum() / max(same.numel(), 1))

    def _given(self, emb: Embeddings, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores and equality of the rows' pairs, (rows,)."""
        first, second = emb.roles
        scores = (emb.twin.own(first) * emb.own(second)).sum(1)
        if labels is not None:
            return scores, _is_one(labels, self.spec.name)
        ids = [emb.text_ids(role) for role in (first, second)]
        if ids[0] is None or ids[1] is None:
            raise EmbedlossError(
                "E206",
                f"'{self.spec.name}' cannot tell which pairs are equal texts. Give labels with the roles first and second, or "
                f"type .with_text_ids({first}=ids, {second}=ids).",
            )
        begin = emb.offset(first)
        return scores, (ids[0] == ids[1])[begin : begin + len(scores)]

    def _drawn(self, emb: Embeddings) -> tuple[Tensor, Tensor]:
        """Scores and equality of pairs drawn among the texts of all processes, (rows, pairs)."""
        twin, pool, begin = emb.twin.own("text"), emb.pool("text"), emb.offset("text")
        itself = torch.arange(len(pool), device=pool.device)
        ids = emb.text_ids("text")
        numbers = itself if ids is None else ids
        # Drawn in the order of the texts' numbers, so that it does not matter which row or process has a text.
        order = numbers.argsort(stable=True)
        drawn = draw_partners(len(pool), self.pos_neg_ratio - 1, emb.generator(self.spec.name)).to(pool.device)
        partners = torch.empty_like(drawn).index_copy_(0, order, order[drawn])
        second = torch.cat([itself[:, None], partners], 1)[begin : begin + len(twin)]
        same = numbers[begin : begin + len(twin), None] == numbers[second]
        return (twin[:, None] * pool[second]).sum(2), same


class ContrastiveTensionLossInBatchNegatives(Loss):
    """Each text must find itself among the batch's texts as the other copy of the encoder sees them, and the reverse.

    Args:
        scale: start value of the factor on similarities, > 0.
        similarity_fct: "cosine", "dot", "euclidean" or "manhattan"; with "dot" use scale 1.
        learnable_scale: train the factor (its logarithm, as a parameter of this loss).

    Paper: Carlsson et al. 2021, Semantic Re-tuning with Contrastive Tension.
    """

    spec = CT_IN_BATCH

    def __init__(self, scale: float = 20.0, similarity_fct: Any = "cosine", learnable_scale: bool = True) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be greater than 0 and finite, got {scale}")
        self.scale, self.similarity_fct, self.learnable_scale = scale, similarity_name(similarity_fct), learnable_scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale))) if learnable_scale else None

    def requires(self) -> Requirements:
        """The trainable copy of the encoder."""
        return Requirements(twin=True)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The mean of both directions; the metric `scale` is the factor now."""
        first, second = emb.roles[0], emb.roles[-1]
        ids = [emb.text_ids(role) for role in (first, second)]
        if ids[0] is not None and ids[1] is not None and bool((ids[0] != ids[1]).any()):
            row = int((ids[0] != ids[1]).nonzero()[0])
            raise EmbedlossError(
                "E105",
                f"'{self.spec.name}' takes single texts, or pairs of equal texts; those of row {row + 1} of this batch differ. "
                f"Leave out one column (--drop column), or use a loss of pairs such as multiple-negatives-ranking.",
            )
        scale: Tensor | float = self.scale if self.log_scale is None else self.log_scale.exp()
        terms = own_match(emb.twin.own(first), emb.pool(second), emb.offset(second), scale, self.similarity_fct)
        terms = terms + own_match(emb.own(second), emb.twin.pool(first), emb.offset(first), scale, self.similarity_fct)
        value = terms.sum() * (0.5 * emb.world_size / max(emb.pool_size, 1))
        return LossOutput.of(value, scale=torch.as_tensor(scale))
