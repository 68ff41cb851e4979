"""The losses of this family: hyper-parameters here, arithmetic in `functional`."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embedloss.activations import activation_name
from embedloss.contrast import Scored, nan_unless_finite
from embedloss.distributed import sum_over_processes
from embedloss.embeddings import Embeddings, Scores
from embedloss.errors import EmbedlossError
from embedloss.in_batch import InBatchLoss
from embedloss.loss import Loss, LossOutput, Row, ScoreLoss
from embedloss.similarity import pairwise
from embedloss.validate import count, must_be, not_negative, one_of, positive
from embedloss_ranking import functional as F
from embedloss_ranking import plugin
from embedloss_ranking.sampling import with_in_batch_negatives


class _Cached:
    """What the names that begin with `Cached` take on top of the plain ones, so that settings of other libraries can be kept.

    Their chunks are loops of those libraries. Here the encoder cuts a batch into chunks by tokens, and the spec of these
    names makes it keep the activations of one chunk only.
    """

    def __init__(
        self,
        *args: Any,
        mini_batch_size: int | None = None,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        given = {"mini_batch_size": mini_batch_size, "mini_batch_num_tokens": mini_batch_num_tokens}
        Loss.keep(self, {**given, "show_progress_bar": show_progress_bar})  # type: ignore[arg-type]


def _directions(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (str, list, tuple)):
        raise ValueError(f"{name} must be a list of {', '.join(F.DIRECTIONS)}, got {value!r}")
    chosen = tuple(dict.fromkeys([value] if isinstance(value, str) else value))
    for direction in chosen:
        one_of(*F.DIRECTIONS)(name, direction)
    if "query_to_doc" not in chosen:
        raise ValueError(f"{name} must contain query_to_doc, which holds the positive")
    return chosen


_COSINE = must_be("a cosine, so in [-1, 1]", lambda value: -1 <= value <= 1)


class _InBatch(InBatchLoss):
    """What the in-batch losses of this family share."""

    def output(self, loss: Tensor, active: Tensor, emb: Embeddings) -> LossOutput:
        """The loss, not a number where the judge is broken, and `active`, the share of rows that have something to learn."""
        (loss,) = self.judged(emb, loss)
        return LossOutput.of(loss, active=active / max(len(emb), 1))

    def judged(self, emb: Embeddings, *losses: Tensor) -> Sequence[Tensor]:
        """The losses, not numbers where the judge's embeddings are not finite."""
        judge = self.judge(emb)
        if judge is None:
            return losses
        broken = nan_unless_finite(*(judge.pool(role) for role in emb.roles))
        return [loss + broken.to(loss.dtype) for loss in losses]


class _InBatchSoftmax(_InBatch):
    """What those of them share that are a softmax."""

    def settings(self) -> dict[str, Any]:
        """The arguments of `multiple_negatives_ranking` that are this loss's own."""
        raise NotImplementedError

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss and `active`, the share of rows that have a candidate beside the positive."""
        loss, active = self._ranked(emb)
        return self.output(loss, active, emb)

    def compute_prefixes(
        self, emb: Embeddings, labels: Tensor | None, dims: Sequence[int], weights: Sequence[float]
    ) -> tuple[Tensor, Sequence[LossOutput]] | None:
        """All sizes in one pass over the rows, unless a judge is cut with the embeddings or a distance is asked for."""
        if self.guide == "self" or self.similarity_fct not in ("cosine", "dot"):
            return None
        total, losses, active = self._ranked(emb, prefixes=(dims, weights))
        total, losses = self.judged(emb, total, losses)
        shares = active / max(len(emb), 1)
        return total, [LossOutput.of(loss, active=share) for loss, share in zip(losses, shares, strict=True)]

    def _ranked(self, emb: Embeddings, **prefixes: Any) -> tuple[Tensor, ...]:
        hard = "negative" in emb
        return F.multiple_negatives_ranking(
            emb.pool("anchor"),
            emb.pool("positive"),
            emb.pool("negative") if hard else None,
            emb.pool_rows_of("negative") if hard else None,
            masks=self.masks(emb),
            shared=self.shared(emb),
            **self.settings(),
            scored=Scored.own(emb, emb.row_weights()),
            **prefixes,
        )


class MultipleNegativesRankingLoss(_InBatchSoftmax):
    """Score each anchor's positive above all other documents of the batch (InfoNCE, in-batch negatives).

    With several processes each scores its own rows against the texts of all. The sum over own rows is divided by (rows of
    all processes / processes), so that the mean over processes is the mean over all rows, however unevenly they lie.

    Args:
        scale: inverse temperature, above 0.
        similarity_fct: "cosine", "dot", "euclidean" or "manhattan" (the last two are negated distances).
        directions: candidate sets: "query_to_doc" (required), "query_to_query", "doc_to_query", "doc_to_doc".
        partition_mode: "joint" (one softmax over all sets) or "per_direction" (the mean of one softmax a set; only for
            query_to_doc and doc_to_query, because the others lack the positive).
        hardness_mode: None, or which logits of query_to_doc are raised by `hardness_strength` times their own similarity,
            taken as a constant: "in_batch_negatives", "hard_negatives" (the row's own) or "all_negatives".
        hardness_strength: at least 0; 9 and 5 are published for the first two modes.
        negatives: "both"; "own" (only the row's own hard negatives, no other rows); "in-batch" (other rows' documents, not
            the row's own hard negatives).
        mask_same_text: this and those after it as in `embedloss.in_batch.InBatchLoss`.

    Raises:
        ValueError: a parameter is outside what is said here.
    """

    spec = plugin.MULTIPLE_NEGATIVES_RANKING

    def __init__(
        self,
        scale: float = 20.0,
        similarity_fct: Any = "cosine",
        directions: Sequence[str] = ("query_to_doc",),
        partition_mode: str = "joint",
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
        negatives: str = "both",
        mask_same_text: bool = False,
        mask_same_id: bool = False,
        positives: str = "first",
        guide: Any = None,
        margin: float = 0.0,
        margin_strategy: str = "absolute",
        guide_prompt: str | None = None,
    ) -> None:
        super().__init__()
        self.keep(
            locals(),
            directions=_directions,
            partition_mode=one_of("joint", "per_direction"),
            hardness_mode=one_of(None, *F.HARDNESS_MODES),
            hardness_strength=not_negative,
            negatives=one_of("both", "own", "in-batch"),
        )
        if partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & set(self.directions):
            raise ValueError(
                "partition_mode='per_direction' takes query_to_doc and doc_to_query only: the other sets lack the positive"
            )
        further = len(self.directions) > 1
        if negatives == "own" and (further or mask_same_text or mask_same_id or positives != "first"):
            raise ValueError(
                "negatives='own' uses no other rows: leave out further directions, mask_same_text, mask_same_id and positives"
            )
        if positives == "sum" and further:
            raise ValueError("positives='sum' goes with query_to_doc alone")
        if hardness_mode is not None and hardness_strength == 0:
            warnings.warn(f"hardness_mode={hardness_mode!r} has no effect while hardness_strength is 0", stacklevel=2)

    def settings(self) -> dict[str, Any]:
        """The arguments of `multiple_negatives_ranking` that are this loss's own."""
        return {
            "scale": self.scale,
            "similarity": self.similarity_fct,
            "directions": self.directions,
            "per_direction": self.partition_mode == "per_direction",
            "hardness_mode": self.hardness_mode,
            "hardness_strength": self.hardness_strength,
            "own_negatives_count": self.negatives != "in-batch",
        }

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss and `active`, the share of rows that have a negative."""
        return self._own_negatives(emb) if self.negatives == "own" else super().compute(emb, labels)

    def compute_prefixes(
        self, emb: Embeddings, labels: Tensor | None, dims: Sequence[int], weights: Sequence[float]
    ) -> tuple[Tensor, Sequence[LossOutput]] | None:
        """As the other in-batch losses, unless only own negatives are asked for."""
        return None if self.negatives == "own" else super().compute_prefixes(emb, labels, dims, weights)

    def _own_negatives(self, emb: Embeddings) -> LossOutput:
        if "negative" not in emb:
            raise EmbedlossError("E206", "negatives='own' needs hard negatives (role negative); the data has none.")
        positive, others, mask = self._own_similarities(emb, self.similarity_fct)
        judge = self.judge(emb)
        if judge is not None:
            best, found, _ = self._own_similarities(judge, self.similarity_fct if judge is emb else "cosine")
            mask = mask & ~(found > self.limit(best)[:, None])
        boosted = others * self.scale
        if self.hardness_mode in ("hard_negatives", "all_negatives"):
            boosted = boosted + self.hardness_strength * others.detach()
        scores = torch.cat([positive[:, None] * self.scale, boosted], 1)
        mask = torch.cat([mask.new_ones(len(mask), 1), mask], 1)
        return self.output(*F.listwise_softmax(scores, mask, emb.pool_size / emb.world_size, emb.row_weights()), emb)

    def _own_similarities(self, emb: Embeddings, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Of each anchor with its positive, (rows,), and with its own hard negatives, (rows, n), and the mask of these."""
        texts, mask = emb.lists("negative")
        anchor = emb.own("anchor")
        others = pairwise(name, anchor[:, None].expand_as(texts), texts)
        return pairwise(name, anchor, emb.own("positive")), others, mask


class CachedMultipleNegativesRankingLoss(_Cached, MultipleNegativesRankingLoss):
    """`MultipleNegativesRankingLoss` for batches that do not fit: the encoder keeps the activations of one chunk only."""

    spec = plugin.CACHED_MULTIPLE_NEGATIVES_RANKING


class MultipleNegativesSymmetricRankingLoss(MultipleNegativesRankingLoss):
    """Deprecated name of `MultipleNegativesRankingLoss` with two directions and one softmax a direction.

    Args:
        scale: as there.
        similarity_fct: as there.
    """

    spec = plugin.MULTIPLE_NEGATIVES_SYMMETRIC_RANKING

    def __init__(self, scale: float = 20.0, similarity_fct: Any = "cosine") -> None:
        super().__init__(scale, similarity_fct, ("query_to_doc", "doc_to_query"), "per_direction")
        warnings.warn(
            f"{type(self).spec.name} is deprecated. Type: {type(self).spec.deprecated_by}", FutureWarning, stacklevel=2
        )


class CachedMultipleNegativesSymmetricRankingLoss(_Cached, MultipleNegativesSymmetricRankingLoss):
    """Deprecated name of `CachedMultipleNegativesRankingLoss` with two directions and one softmax a direction."""

    spec = plugin.CACHED_MULTIPLE_NEGATIVES_SYMMETRIC_RANKING


class GISTEmbedLoss(_InBatchSoftmax):
    """In-batch softmax without the candidates that a frozen guide finds closer than the positive.

    Args:
        guide: folder or hub id of a model, or an `Encoder`. It is frozen, in evaluation mode, tokenises for itself and sees
            the texts without the trained model's prompts. "self": the embeddings that are trained, as constants.
        temperature: what cosines are divided by, above 0.
        margin_strategy: "absolute" or "relative" (to the size of the positive's cosine).
        margin: a candidate is dropped if the guide's cosine is above that of the positive less this; any finite number.
        contrast_anchors: other rows' anchors are candidates.
        contrast_positives: other rows' positives are compared with the row's positive, too.
        guide_prompt: text put before every text that the guide sees.
        mask_same_text: this, `mask_same_id` and `positives` as in `embedloss.in_batch.InBatchLoss`.

    Raises:
        ValueError: a parameter is outside what is said here.
    """

    spec = plugin.GIST_EMBED

    def __init__(
        self,
        guide: Any,
        temperature: float = 0.01,
        margin_strategy: str = "absolute",
        margin: float = 0.0,
        contrast_anchors: bool = True,
        contrast_positives: bool = True,
        guide_prompt: str | None = None,
        mask_same_text: bool = False,
        mask_same_id: bool = False,
        positives: str = "first",
    ) -> None:
        super().__init__()
        if guide is None:
            raise ValueError("guide must name a model (a folder or hub id), be an Encoder, or be 'self'")
        self.keep(locals(), temperature=positive)

    def settings(self) -> dict[str, Any]:
        """The arguments of `multiple_negatives_ranking` that are this loss's own."""
        further = {"query_to_query": self.contrast_anchors, "positive_to_positive": self.contrast_positives}
        return {"scale": 1 / self.temperature, "directions": [name for name, wanted in further.items() if wanted]}


class CachedGISTEmbedLoss(_Cached, GISTEmbedLoss):
    """`GISTEmbedLoss` for batches that do not fit: the encoder keeps the activations of one chunk only."""

    spec = plugin.CACHED_GIST_EMBED


class MegaBatchMarginLoss(_InBatch):
    """Margins on the cosines of each anchor with its positive and with the hardest other positive of a large batch.

    Args:
        positive_margin: the positive's cosine should be at least this; in [-1, 1].
        negative_margin: the hardest other one's should be at most this; in [-1, 1].
        use_mini_batched_version: look at `mini_batch_size` rows at a time instead of all; value and gradient are the same.
        mini_batch_size: rows looked at at a time, at least 1.
        mask_same_text: this and those after it as in `embedloss.in_batch.InBatchLoss`; `margin` is that of the guide.

    Raises:
        ValueError: a parameter is outside what is said here.
    """

    spec = plugin.MEGA_BATCH_MARGIN

    def __init__(
        self,
        positive_margin: float = 0.8,
        negative_margin: float = 0.3,
        use_mini_batched_version: bool = True,
        mini_batch_size: int = 50,
        mask_same_text: bool = False,
        mask_same_id: bool = False,
        guide: Any = None,
        margin: float = 0.0,
        margin_strategy: str = "absolute",
        guide_prompt: str | None = None,
    ) -> None:
        super().__init__()
        self.keep(locals(), positive_margin=_COSINE, negative_margin=_COSINE, mini_batch_size=count)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss and `active`, the share of rows that violate a margin."""
        loss, active = F.mega_batch_margin(
            emb.pool("anchor"),
            emb.pool("positive"),
            positive_margin=self.positive_margin,
            negative_margin=self.negative_margin,
            excluded=self.masks(emb)("anchor", "positive"),
            tile=self.mini_batch_size if self.use_mini_batched_version else max(len(emb), 1),
            scored=Scored.own(emb, emb.row_weights()),
        )
        return self.output(loss, active, emb)


class CrossMultipleNegativesRankingLoss(ScoreLoss):
    """Score each query's positive above sampled documents of other rows and its own hard negatives, with a cross-encoder.

    The sampling happens before tokenisation (`transform`), from the rows of this process's batch.

    Args:
        num_negatives: documents drawn for each row from other rows, without replacement; 0 for none, None for all.
        scale: factor on the activated scores; 0 or None for 1.
        activation_fn: "sigmoid", "identity" or another activation of `embedloss.activations`; None for none.

    Raises:
        ValueError: a parameter is outside what is said here.
    """

    spec = plugin.CROSS_MULTIPLE_NEGATIVES_RANKING

    def __init__(self, num_negatives: int | None = 4, scale: float | None = 10.0, activation_fn: Any = "sigmoid") -> None:
        super().__init__()
        if num_negatives is not None and (type(num_negatives) is not int or num_negatives < 0):
            raise ValueError(f"num_negatives must be a whole number of at least 0, or None for all; got {num_negatives!r}")
        if scale is not None and not 0 <= scale < float("inf"):
            raise ValueError(f"scale must be at least 0 and finite; got {scale}")
        self.num_negatives = num_negatives
        self.scale = scale  # type: ignore[assignment]
        self.activation_fn = None if activation_fn is None else activation_name(activation_fn)

    def transform(self, rows: list[Row], format_name: str, rng: random.Random) -> tuple[list[Row], str]:
        """Add documents of other rows to the negatives; see `sampling.with_in_batch_negatives`."""
        return with_in_batch_negatives(rows, format_name, self.num_negatives, rng)

    def check_inputs(self, embeddings: Embeddings | Scores) -> None:
        """E206 unless called with scores."""
        if not isinstance(embeddings, Scores):
            raise EmbedlossError(
                "E206", f"'{self.spec.name}' takes scores of a cross-encoder. Type: loss(Scores.of(scores, mask))"
            )

    def compute(self, emb: Embeddings | Scores, labels: Tensor | None) -> LossOutput:
        """The loss, `active` (share of rows with a negative) and `saturated` (share of flat scores)."""
        assert isinstance(emb, Scores)  # check_inputs has refused anything else
        rows = emb.values.new_tensor(float(len(emb)))
        divisor = float(sum_over_processes(rows)) / emb.processes if emb.processes > 1 else float(rows)
        return self._loss(emb.values, emb.mask, divisor)

    def compute_scores(self, scores: Tensor, labels: Tensor | None, mask: Tensor) -> LossOutput:
        """The loss from (rows, candidates) logits, the positive's first; labels are not used."""
        return self._loss(scores, mask, float(len(scores)))

    def _loss(self, scores: Tensor, mask: Tensor, divisor: float) -> LossOutput:
        values = self.activated(scores, mask)
        loss, active = F.listwise_softmax(values * (self.scale or 1.0), mask, divisor)
        metrics = {"active": active / max(len(scores), 1)}
        if self.activation_fn == "sigmoid":
            flat = (values * (1 - values) < 1e-4) & mask
            metrics["saturated"] = flat.sum() / mask.sum().clamp(min=1)
        return LossOutput.of(loss, **metrics)


class CachedCrossMultipleNegativesRankingLoss(_Cached, CrossMultipleNegativesRankingLoss):
    """`CrossMultipleNegativesRankingLoss` for batches that do not fit: the model keeps the activations of one chunk only."""

    spec = plugin.CACHED_CROSS_MULTIPLE_NEGATIVES_RANKING
