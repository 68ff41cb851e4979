"""Learning-to-rank losses. Each takes the scores of a query's documents, from a cross-encoder or as similarities."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from embedloss.loss import MeanScoreLoss
from embedloss.spec import LossSpec
from embedloss.validate import count, must_be, named, not_negative, one_of, optional, positive
from embedloss_learning_to_rank.functional import SCHEMES, adr_mse, lambda_loss, list_mle, list_net
from embedloss_learning_to_rank.plugin import ADR_MSE, LAMBDA, LIST_MLE, LIST_NET, PLIST_MLE, RANK_NET

_SCHEME_NAMES = {
    "NoWeightingScheme": "none",
    "NDCGLoss1Scheme": "ndcg-loss1",
    "NDCGLoss2Scheme": "ndcg-loss2",
    "LambdaRankScheme": "lambdarank",
    "NDCGLoss2PPScheme": "ndcg-loss2++",
}


class _ListwiseLoss(MeanScoreLoss):
    """What all losses of the family share: one finite grade a document."""

    takes = "takes finite grades"

    def grades(self, labels: Tensor, mask: Tensor) -> Tensor:
        """The labels, 0 where there is no document. E206 for a wrong shape, E105 for a grade that is not finite."""
        if labels.shape != mask.shape:
            shapes = f"labels {tuple(labels.shape)} for {tuple(mask.shape)} (lists, documents)"
            raise self.error("E206", f"takes one grade a document: got {shapes}.")
        labels = labels.masked_fill(~mask, 0)
        self.refuse(self.unusable(labels), f"got in row {{row}} of this batch the grade {{value}}; it {self.takes}.", labels)
        return labels

    def unusable(self, grades: Tensor) -> Tensor:
        """(lists, documents) True where a grade is refused."""
        return ~grades.isfinite()

    def teaches(self, labels: Tensor, mask: Tensor) -> Tensor:
        """Lists with at least two documents."""
        return mask.sum(1) > 1


class LambdaLoss(_ListwiseLoss):
    """Pairs of documents of different grades, each weighted by what its order is worth to NDCG.

    Args:
        weighting_scheme: "none", "ndcg-loss1", "ndcg-loss2", "lambdarank" or "ndcg-loss2++"; None stands for "none".
        k: pairs count if one of their documents is among the k best scores; None: all.
        sigma: slope of the logistic function, > 0.
        eps: lowest value of the highest possible DCG, > 0.
        reduction_log: "binary" or "natural" logarithm.
        activation_fn: applied to the scores: "identity", "sigmoid", "tanh", "relu" or None.
        mini_batch_size: has no effect (the encoder makes chunks); accepted with a warning.
        similarity_fct: similarity of query and document on a bi-encoder.
        scale: factor of these similarities.
        mu: weight of "ndcg-loss2" in "ndcg-loss2++".

    Paper: Wang et al. 2018, The LambdaLoss Framework for Ranking Metric Optimization, doi 10.1145/3269206.3271784.
    """

    spec = LAMBDA
    takes = "takes finite grades up to 60, as 2^grade is their gain"

    def __init__(
        self,
        weighting_scheme: Any = "ndcg-loss2++",
        k: int | None = None,
        sigma: float = 1.0,
        eps: float = 1e-10,
        reduction_log: str = "binary",
        activation_fn: Any = "identity",
        mini_batch_size: int | None = None,
        similarity_fct: Any = "cosine",
        scale: float = 20.0,
        mu: float = 10.0,
    ) -> None:
        super().__init__()
        self.keep(
            locals(),
            weighting_scheme=optional(named(SCHEMES, _SCHEME_NAMES)),
            k=optional(count),
            sigma=positive,
            eps=positive,
            reduction_log=one_of("binary", "natural"),
            mu=not_negative,
        )
        self.bind_spec(type(self).spec)

    def bind_spec(self, spec: LossSpec) -> None:
        """Without gains there is no highest grade."""
        super().bind_spec(spec if self.weighting_scheme not in (None, "none") else replace(spec, highest_label=None))

    def unusable(self, grades: Tensor) -> Tensor:
        """Also, where gains are used, grades whose gain 2^grade would swamp all others."""
        highest = self.spec.highest_label
        return ~grades.isfinite() | (grades > (math.inf if highest is None else highest))

    def teaches(self, labels: Tensor, mask: Tensor) -> Tensor:
        """Lists with two different grades."""
        grades = labels.double()
        highest, lowest = grades.masked_fill(~mask, -math.inf), grades.masked_fill(~mask, math.inf)
        return highest.amax(1) > lowest.amin(1) if mask.shape[1] else mask.any(1)

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Items are pairs of documents."""
        grades, base = self.grades(labels, mask), 2.0 if self.reduction_log == "binary" else math.e
        return lambda_loss(scores, grades, mask, self.weighting_scheme or "none", self.k, self.sigma, self.eps, base, self.mu)


class RankNetLoss(LambdaLoss):
    """Logistic loss of every pair of documents of different grades; LambdaLoss without weights.

    Args:
        k: pairs count if one of their documents is among the k best scores; None: all.
        sigma: slope of the logistic function, > 0.
        eps: has no effect; kept because LambdaLoss has it.
        reduction_log: "binary" or "natural" logarithm.
        activation_fn: applied to the scores: "identity", "sigmoid", "tanh", "relu" or None.
        mini_batch_size: has no effect (the encoder makes chunks); accepted with a warning.
        similarity_fct: similarity of query and document on a bi-encoder.
        scale: factor of these similarities.

    Paper: Burges et al. 2005, Learning to Rank using Gradient Descent, doi 10.1145/1102351.1102363.
    """

    spec = RANK_NET
    takes = "takes finite grades"

    def __init__(
        self,
        k: int | None = None,
        sigma: float = 1.0,
        eps: float = 1e-10,
        reduction_log: str = "binary",
        activation_fn: Any = "identity",
        mini_batch_size: int | None = None,
        similarity_fct: Any = "cosine",
        scale: float = 20.0,
    ) -> None:
        super().__init__("none", k, sigma, eps, reduction_log, activation_fn, mini_batch_size, similarity_fct, scale)


class ListNetLoss(_ListwiseLoss):
    """Cross entropy of the softmax of the grades and the softmax of the scores, averaged over lists.

    Args:
        activation_fn: applied to the scores: "identity", "sigmoid", "tanh", "relu" or None.
        mini_batch_size: has no effect (the encoder makes chunks); accepted with a warning.
        similarity_fct: similarity of query and document on a bi-encoder.
        scale: factor of these similarities.

    Paper: Cao et al. 2007, Learning to Rank: From Pairwise Approach to Listwise Approach, doi 10.1145/1273496.1273513.
    """

    spec = LIST_NET
    takes = "takes finite grades, and -inf for some documents that are left out of the target"

    def __init__(
        self,
        activation_fn: Any = "identity",
        mini_batch_size: int | None = None,
        similarity_fct: Any = "cosine",
        scale: float = 20.0,
    ) -> None:
        super().__init__()
        self.keep(locals())

    def unusable(self, grades: Tensor) -> Tensor:
        """-inf leaves a document out; NaN and inf are refused."""
        return grades.isnan() | (grades == math.inf)

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Items are lists."""
        grades = self.grades(labels, mask)
        nothing = ((grades == -math.inf) | ~mask).all(1) & mask.any(1)
        self.refuse(nothing, "needs a document in each target: row {row} of this batch has only grades of -inf.")
        return list_net(scores, grades, mask)


@dataclass(frozen=True)
class PListMLELambdaWeight:
    """The weights of positions in `PListMLELoss`, under the name that other libraries give them.

    Args:
        rank_discount_fn: float ranks 1, 2, ..., N -> N weights; None: 2^(N - rank) - 1.
    """

    rank_discount_fn: Callable[[Tensor], Tensor] | None = None


_POSITION_WEIGHTS = must_be(
    '"default", None or a function of ranks', lambda value: value is None or callable(value) or value == "default"
)
_TRUTH = must_be("True or False", lambda value: isinstance(value, bool))


class PListMLELoss(_ListwiseLoss):
    """Negative log-likelihood of an order of the documents, with more weight on its first positions.

    Args:
        lambda_weight: "default" for weights 2^(N - rank) - 1; a function from float ranks 1, 2, ..., N to N weights; or None
            for equal weights 1, which is `ListMLELoss`. Weights (not None) are divided by their sum over a list's documents.
        activation_fn: applied to the scores: "identity", "sigmoid", "tanh", "relu" or None.
        mini_batch_size: has no effect (the encoder makes chunks); accepted with a warning.
        respect_input_order: the documents are given best first and grades are not read; False: sort them by descending
            grade, equal grades as given.
        similarity_fct: similarity of query and document on a bi-encoder.
        scale: factor of these similarities.

    Paper: Lan et al. 2014, Position-Aware ListMLE, UAI, pp. 449-458.
    """

    spec = PLIST_MLE

    def __init__(
        self,
        lambda_weight: Any = "default",
        activation_fn: Any = "identity",
        mini_batch_size: int | None = None,
        respect_input_order: bool = True,
        similarity_fct: Any = "cosine",
        scale: float = 20.0,
    ) -> None:
        super().__init__()
        if isinstance(lambda_weight, PListMLELambdaWeight):
            lambda_weight = lambda_weight.rank_discount_fn or "default"
        self.keep(locals(), lambda_weight=_POSITION_WEIGHTS, respect_input_order=_TRUTH)
        self._warned = False
        self.bind_spec(type(self).spec)

    def bind_spec(self, spec: LossSpec) -> None:
        """Where the order as given is all that is read, the spec says so, and data that contradicts it is refused."""
        super().bind_spec(replace(spec, best_first="respect_input_order=False" if self.respect_input_order else ""))

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Items are lists."""
        grades = self.grades(labels, mask)
        if self.respect_input_order:
            self._compare_order(grades, mask)
        discount = self._discount if callable(self.lambda_weight) else self.lambda_weight
        return list_mle(scores, None if self.respect_input_order else grades, mask, discount)

    def _discount(self, ranks: Tensor) -> Tensor:
        weights = torch.as_tensor(self.lambda_weight(ranks), device=ranks.device)
        if weights.shape != ranks.shape:
            found = f"got {tuple(weights.shape)} for ranks {tuple(ranks.shape)}"
            raise self.error("E203", f"needs a lambda_weight that gives one weight a rank: {found}.")
        return weights

    def _compare_order(self, grades: Tensor, mask: Tensor) -> None:
        """Warn, once, if a document comes after one of a lower grade."""
        if self._warned:
            return
        lowest = grades.double().masked_fill(~mask, math.inf)
        rises = ((grades > lowest.cummin(1).values) & mask).any(1) if mask.shape[1] else mask.any(1)
        if bool(rises.any()):
            self._warned = True
            warnings.warn(
                f"'{self.spec.name}' takes the documents as given, best first, and reads no grades; in {int(rises.sum())} of "
                f"{len(mask)} lists of this batch a better grade comes later. Type: respect_input_order=False",
                stacklevel=2,
            )


class ListMLELoss(PListMLELoss):
    """Negative log-likelihood of an order of the documents under the Plackett-Luce model of the scores.

    Args:
        activation_fn: applied to the scores: "identity", "sigmoid", "tanh", "relu" or None.
        mini_batch_size: has no effect (the encoder makes chunks); accepted with a warning.
        respect_input_order: the documents are given best first and grades are not read; False: sort them by descending
            grade, equal grades as given.
        similarity_fct: similarity of query and document on a bi-encoder.
        scale: factor of these similarities.

    Paper: Xia et al. 2008, Listwise Approach to Learning to Rank, doi 10.1145/1390156.1390306.
    """

    spec = LIST_MLE

    def __init__(
        self,
        activation_fn: Any = "identity",
        mini_batch_size: int | None = None,
        respect_input_order: bool = True,
        similarity_fct: Any = "cosine",
        scale: float = 20.0,
    ) -> None:
        super().__init__(None, activation_fn, mini_batch_size, respect_input_order, similarity_fct, scale)


class ADRMSELoss(_ListwiseLoss):
    """Squared error of differentiable ranks against the ranks by grade, discounted by the logarithm of the latter.

    Args:
        alpha: slope of the approximation of ranks, > 0; higher is closer to a step.
        activation_fn: applied to the scores: "identity", "sigmoid", "tanh", "relu" or None.
        mini_batch_size: has no effect (the encoder makes chunks); accepted with a warning.
        similarity_fct: similarity of query and document on a bi-encoder.
        scale: factor of these similarities.

    Paper: Schlatt et al. 2024, Rank-DistiLLM, arXiv 2405.07920.
    """

    spec = ADR_MSE

    def __init__(
        self,
        alpha: float = 1.0,
        activation_fn: Any = "identity",
        mini_batch_size: int | None = None,
        similarity_fct: Any = "cosine",
        scale: float = 20.0,
    ) -> None:
        super().__init__()
        self.keep(locals(), alpha=positive)

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Items are documents."""
        return adr_mse(scores, self.grades(labels, mask), mask, self.alpha)
