"""Contrastive losses of labelled pairs, and contrastive tension between two copies of the encoder."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embedloss.contrast import Block, Scored, contrast
from embedloss.embeddings import Embeddings
from embedloss.in_batch import equal
from embedloss.loss import Loss, LossOutput, ModelInfo, Requirements, share_of
from embedloss.similarity import pairwise_distance
from embedloss.validate import count, positive
from embedloss_contrastive.functional import contrastive, contrastive_tension, draw_partners, online_contrastive
from embedloss_contrastive.plugin import CONTRASTIVE, CT, CT_IN_BATCH, ONLINE_CONTRASTIVE


class _BinaryLoss(Loss):
    """A loss of pairs that belong together or do not."""

    def is_one(self, labels: Tensor | None) -> Tensor:
        """Labels 0 and 1 as bool; E105 for any other value."""
        assert labels is not None  # check_labels has refused it
        bad = (labels != 0) & (labels != 1)
        self.refuse(bad, "takes labels 0 and 1; the label of row {row} of this batch is {value}.", labels)
        return labels == 1


class _TwinLoss(_BinaryLoss):
    """A loss between two copies of the encoder."""

    def requires(self) -> Requirements:
        """The trainable copy of the encoder."""
        return Requirements(twin=True)

    def pair_ids(self, emb: Embeddings) -> tuple[Tensor, Tensor] | None:
        """The text ids of the first and the last role, where both are known."""
        first, last = emb.text_ids(emb.roles[0]), emb.text_ids(emb.roles[-1])
        return None if first is None or last is None else (first, last)


class ContrastiveLoss(_BinaryLoss):
    """Pairs that belong together are drawn together, others pushed apart up to a margin.

    Args:
        distance: "cosine", "euclidean", "squared-euclidean" or "manhattan".
        margin: distance beyond which pairs with label 0 have no gradient, > 0.
        reduction: "mean" or "sum" over rows.

    Paper: Hadsell, Chopra and LeCun 2006, Dimensionality Reduction by Learning an Invariant Mapping.
    """

    spec = CONTRASTIVE
    parameter_aliases: ClassVar[dict[str, str]] = {"distance_metric": "distance", "size_average": "reduction"}

    def __init__(self, distance: Any = "cosine", margin: float = 0.5, reduction: str | bool = "mean") -> None:
        super().__init__()
        if isinstance(reduction, bool):  # under its other name, size_average
            reduction = "mean" if reduction else "sum"
        self.keep(locals(), margin=positive)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss; the metric `active` is the share of pairs that have a gradient."""
        distances = pairwise_distance(self.distance, emb.own("first"), emb.own("second"))
        terms = contrastive(distances, self.is_one(labels), self.margin)
        value = emb.joint_mean(terms) if self.reduction == "mean" else emb.weighted(terms).sum() * emb.world_size
        return LossOutput.of(value, active=share_of(terms > 0))


class OnlineContrastiveLoss(_BinaryLoss):
    """The contrastive loss of the hard pairs of a batch only, summed.

    Args:
        distance: "cosine", "euclidean", "squared-euclidean" or "manhattan".
        margin: distance beyond which pairs with label 0 have no gradient, > 0.
    """

    spec = ONLINE_CONTRASTIVE
    parameter_aliases: ClassVar[dict[str, str]] = {"distance_metric": "distance"}

    def __init__(self, distance: Any = "cosine", margin: float = 0.5) -> None:
        super().__init__()
        self.keep(locals(), margin=positive)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss of the joint batch, on every process; the metric `active` is the share of pairs that have a gradient."""
        same = emb.gathered(self.is_one(labels).long()) == 1
        distances = pairwise_distance(self.distance, emb.pool("first"), emb.pool("second"))
        terms, active = online_contrastive(distances, same, self.margin)
        return LossOutput.of(terms.sum(), active=share_of(active))


class ContrastiveTensionLoss(_TwinLoss):
    """Two copies of the encoder learn to agree on equal texts and to disagree on different ones. No labels are needed.

    Args:
        pos_neg_ratio: with single texts, every text makes that many pairs: one with itself, the others with other texts of the
            batch, drawn anew each step; >= 1.

    Paper: Carlsson et al. 2021, Semantic Re-tuning with Contrastive Tension.
    """

    spec = CT

    def __init__(self, pos_neg_ratio: int = 8) -> None:
        super().__init__()
        self.keep(locals(), pos_neg_ratio=count)

    def prepare(self, info: ModelInfo) -> None:
        """A warning if the encoder's embeddings have length 1: their dot products cannot tell pairs apart."""
        if getattr(info.encoder, "normalizes", False):
            found = "contrastive-tension scores pairs by dot products, which embeddings of length 1 keep between -1 and 1"
            warnings.warn(f"{found}; it hardly learns. Type --no-normalize (load_encoder(..., normalize=False)).", stacklevel=2)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The sum over pairs; the metric `positives` is the share of pairs of equal texts."""
        scores, same = self._drawn(emb) if emb.roles == ("text",) else self._given(emb, labels)
        value = contrastive_tension(scores, same).sum() * emb.world_size  # a sum: its mean over processes is the joint sum
        return LossOutput.of(value, positives=share_of(same))

    def _given(self, emb: Embeddings, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores and equality of the rows' pairs, (rows,)."""
        first, second = emb.roles
        scores = (emb.twin.own(first) * emb.own(second)).sum(1)
        if labels is not None:
            return scores, self.is_one(labels)
        ids = self.pair_ids(emb)
        if ids is None:
            raise self.error(
                "E206",
                "cannot tell which pairs are equal texts. Give labels with the roles first and second, or "
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


class ContrastiveTensionLossInBatchNegatives(_TwinLoss):
    """Each text must find itself among the batch's texts as the other copy of the encoder sees them, and the reverse.

    Args:
        scale: start value of the factor on similarities, > 0.
        similarity_fct: "cosine", "dot", "euclidean" or "manhattan"; with "dot" use scale 1.
        learnable_scale: train the factor (its logarithm, as a parameter of this loss).
        mask_same_text: equal texts are no negatives of each other.

    Paper: Carlsson et al. 2021, Semantic Re-tuning with Contrastive Tension.
    """

    spec = CT_IN_BATCH

    def __init__(
        self,
        scale: float = 20.0,
        similarity_fct: Any = "cosine",
        learnable_scale: bool = True,
        mask_same_text: bool = False,
    ) -> None:
        super().__init__()
        self.keep(locals())
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale))) if learnable_scale else None

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The mean of both directions; the metric `scale` is the factor now."""
        first, second = emb.roles[0], emb.roles[-1]
        ids = self.pair_ids(emb)
        if ids is not None:
            found = "takes single texts, or pairs of equal texts; those of row {row} of this batch differ. "
            repair = "Leave out one column (--drop column), or use a loss of pairs such as multiple-negatives-ranking."
            self.refuse(ids[0] != ids[1], found + repair)
        excluded = None
        if self.mask_same_text:
            if ids is None:
                raise self.error("E206", f"needs to know equal texts for mask_same_text. Type: .with_text_ids({first}=ids)")
            excluded = equal(ids[0], ids[0])
        scale: Tensor | float = self.scale if self.log_scale is None else self.log_scale.exp()
        total, _ = contrast(
            {"twin": emb.twin.pool(first), "text": emb.pool(second)},
            [
                Block("twin", "text", 0, "positive", excluded),
                Block("text", "twin", 1, "positive", excluded),
            ],
            scale=scale,
            similarity=self.similarity_fct,
            scored=Scored.own(emb),
        )
        return LossOutput.of(total, scale=torch.as_tensor(scale))
