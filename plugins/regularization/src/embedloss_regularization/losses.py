"""Regularisers of the embedding space."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from embedloss.embeddings import Embeddings
from embedloss.loss import Loss, LossOutput
from embedloss.validate import must_be, not_negative, optional
from embedloss_regularization.functional import orthogonality
from embedloss_regularization.plugin import GLOBAL_ORTHOGONAL_REGULARIZATION

WEIGHT = optional(not_negative)
AGGREGATION = must_be("mean or sum", lambda value: value in ("mean", "sum"))


def _columns(emb: Embeddings, role: str) -> Iterator[Tensor]:
    """The texts of all processes: one tensor (rows, dim), or the first texts of all rows, the second ones, ... of a list."""
    texts = emb.pool(role)
    if emb.single(role):
        yield texts
        return
    rows = emb.pool_rows_of(role)
    counts = torch.bincount(rows)
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    for k in range(int(counts.max()) if len(counts) else 0):
        yield texts[place == k]


class GlobalOrthogonalRegularizationLoss(Loss):
    """Spread unrelated embeddings over the sphere (Zhang et al. 2017, arXiv 1708.06320).

    Args:
        similarity_fct: "cosine", "dot", "euclidean" or "manhattan" (distances are negated).
        mean_weight: of the squared mean similarity; None or 0 leaves the term out.
        second_moment_weight: of the mean squared similarity beyond 1 / dim; None or 0 leaves the term out.
        aggregation: over the columns of a row: "mean", or "sum" as in EmbeddingGemma (arXiv 2509.20354).
    """

    spec = GLOBAL_ORTHOGONAL_REGULARIZATION

    def __init__(
        self,
        similarity_fct: Any = "cosine",
        mean_weight: float | None = 1.0,
        second_moment_weight: float | None = 1.0,
        aggregation: str = "mean",
    ) -> None:
        super().__init__()
        self.keep(locals(), mean_weight=WEIGHT, second_moment_weight=WEIGHT, aggregation=AGGREGATION)
        if not mean_weight and not second_moment_weight:
            raise ValueError("one of mean_weight and second_moment_weight must be above 0")

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The two terms, of the texts of all processes; `active` is the share of columns that hold at least two texts."""
        columns = [column for role in emb.roles for column in _columns(emb, role)]
        found = [orthogonality(column, self.similarity_fct) for column in columns]
        means, moments = (torch.stack(values) for values in zip(*found, strict=True))
        terms = {"gor_mean": (self.mean_weight, means), "gor_second_moment": (self.second_moment_weight, moments)}
        value = {name: weight * getattr(values, self.aggregation)() for name, (weight, values) in terms.items() if weight}
        return LossOutput.of(value, active=torch.tensor(sum(len(c) > 1 for c in columns) / len(columns)))
