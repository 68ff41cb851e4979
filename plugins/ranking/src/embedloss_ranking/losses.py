"""The losses of this family: hyper-parameters here, arithmetic in `functional`."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from embedloss.activations import activation_name
from embedloss.distributed import sum_over_processes
from embedloss.embeddings import Embeddings, Scores
from embedloss.errors import EmbedlossError
from embedloss.loss import Loss, LossOutput, Requirements, Row, ScoreLoss
from embedloss.similarity import pairwise, similarity_name
from embedloss_ranking import functional as F
from embedloss_ranking import plugin
from embedloss_ranking.sampling import with_in_batch_negatives


def _one_of(parameter: str, value: Any, allowed: Sequence[Any]) -> Any:
    if value not in allowed:
        raise ValueError(f"{parameter} must be one of {', '.join(map(str, allowed))}; got {value!r}")
    return value


def _not_chunked_here(mini_batch_size: int, mini_batch_num_tokens: int | None, show_progress_bar: bool) -> None:
    if mini_batch_size != 32 or mini_batch_num_tokens is not None or show_progress_bar:
        warnings.warn(
            "mini_batch_size, mini_batch_num_tokens and show_progress_bar have no effect: the encoder cuts a batch into chunks "
            "by tokens (chunk_tokens), and this name makes it keep the activations of one chunk only.",
            stacklevel=3,
        )


def _renamed(old: str, new: str) -> None:
    warnings.warn(f"{old} is deprecated. Type: {new}", FutureWarning, stacklevel=3)


def _own_rows(emb: Embeddings) -> dict[str, Any]:
    """The arguments by which a process scores its own rows, so that the mean over processes is the mean over all rows."""
    return {"begin": emb.row_offset, "end": emb.row_offset + len(emb), "divisor": emb.pool_size / emb.world_size}


def _output(loss: Tensor, active: Tensor, emb: Embeddings) -> LossOutput:
    return LossOutput.of(loss, active=active / max(len(emb), 1))


class MultipleNegativesRankingLoss(Loss):
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
        mask_same_text: a document whose text is that of the row's positive, or a query whose text is that of the row's
            anchor, is no negative of the row.

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
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be above 0; got {scale}")
        if not hardness_strength >= 0:
            raise ValueError(f"hardness_strength must be at least 0; got {hardness_strength}")
        chosen = tuple(dict.fromkeys([directions] if isinstance(directions, str) else directions))
        for direction in chosen:
            _one_of("directions", direction, F.DIRECTIONS)
        if "query_to_doc" not in chosen:
            raise ValueError("directions must contain query_to_doc, which holds the positive")
        if partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & set(chosen):
            raise ValueError(
                "partition_mode='per_direction' takes query_to_doc and doc_to_query only: the other sets lack the positive"
            )
        if negatives == "own" and (len(chosen) > 1 or mask_same_text):
            raise ValueError("negatives='own' uses no other rows: leave out further directions and mask_same_text")
        self.scale = scale
        self.similarity_fct = similarity_name(similarity_fct)
        self.directions = chosen
        self.partition_mode = _one_of("partition_mode", partition_mode, ("joint", "per_direction"))
        self.hardness_mode = _one_of("hardness_mode", hardness_mode, (None, *F.HARDNESS_MODES))
        self.hardness_strength = hardness_strength
        self.negatives = _one_of("negatives", negatives, ("both", "own", "in-batch"))
        self.mask_same_text = mask_same_text
        if hardness_mode is not None and hardness_strength == 0:
            warnings.warn(f"hardness_mode={hardness_mode!r} has no effect while hardness_strength is 0", stacklevel=2)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss and `active`, the share of rows that have a negative."""
        hard = "negative" in emb
        if self.negatives == "own":
            return self._own_negatives(emb)
        loss, active = F.multiple_negatives_ranking(
            emb.pool("anchor"),
            emb.pool("positive"),
            emb.pool("negative") if hard else None,
            emb.pool_rows_of("negative") if hard else None,
            scale=self.scale,
            similarity=self.similarity_fct,
            directions=self.directions,
            per_direction=self.partition_mode == "per_direction",
            hardness_mode=self.hardness_mode,
            hardness_strength=self.hardness_strength,
            own_negatives_count=self.negatives != "in-batch",
            anchor_ids=self._ids(emb, "anchor"),
            positive_ids=self._ids(emb, "positive"),
            negative_ids=self._ids(emb, "negative") if hard else None,
            **_own_rows(emb),
        )
        return _output(loss, active, emb)

    def _ids(self, emb: Embeddings, role: str) -> Tensor | None:
        ids = emb.text_ids(role) if self.mask_same_text else None
        if self.mask_same_text and ids is None:
            raise EmbedlossError(
                "E206",
                f"mask_same_text needs to know equal texts. Type: embeddings.with_text_ids({role}=ids), or use the trainer.",
            )
        return ids

    def _own_negatives(self, emb: Embeddings) -> LossOutput:
        if "negative" not in emb:
            raise EmbedlossError("E206", "negatives='own' needs hard negatives (role negative); the data has none.")
        texts, mask = emb.lists("negative")
        anchor = emb.own("anchor")
        positive = pairwise(self.similarity_fct, anchor, emb.own("positive"))
        others = pairwise(self.similarity_fct, anchor[:, None].expand_as(texts), texts)
        boosted = others * self.scale
        if self.hardness_mode in ("hard_negatives", "all_negatives"):
            boosted = boosted + self.hardness_strength * others.detach()
        scores = torch.cat([positive[:, None] * self.scale, boosted], 1)
        mask = torch.cat([mask.new_ones(len(mask), 1), mask], 1)
        return _output(*F.listwise_softmax(scores, mask, emb.pool_size / emb.world_size), emb)


class CachedMultipleNegativesRankingLoss(MultipleNegativesRankingLoss):
    """`MultipleNegativesRankingLoss` for batches that do not fit: the encoder keeps the activations of one chunk only.

    Args:
        scale: this and the others up to `mask_same_text` as in `MultipleNegativesRankingLoss`.
        mini_batch_size: accepted and without effect, as are the two after it: chunks are the encoder's, bounded in tokens.
    """

    spec = plugin.CACHED_MULTIPLE_NEGATIVES_RANKING

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
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__(
            scale, similarity_fct, directions, partition_mode, hardness_mode, hardness_strength, negatives, mask_same_text
        )
        _not_chunked_here(mini_batch_size, mini_batch_num_tokens, show_progress_bar)
        self.mini_batch_size, self.mini_batch_num_tokens = mini_batch_size, mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar


class MultipleNegativesSymmetricRankingLoss(MultipleNegativesRankingLoss):
    """Deprecated name of `MultipleNegativesRankingLoss` with two directions and one softmax a direction.

    Args:
        scale: as there.
        similarity_fct: as there.
    """

    spec = plugin.MULTIPLE_NEGATIVES_SYMMETRIC_RANKING

    def __init__(self, scale: float = 20.0, similarity_fct: Any = "cosine") -> None:
        super().__init__(scale, similarity_fct, ("query_to_doc", "doc_to_query"), "per_direction")
        _renamed(type(self).spec.name, str(type(self).spec.deprecated_by))


class CachedMultipleNegativesSymmetricRankingLoss(MultipleNegativesSymmetricRankingLoss):
    """Deprecated name of `CachedMultipleNegativesRankingLoss` with two directions and one softmax a direction.

    Args:
        scale: as there.
        similarity_fct: as there.
        mini_batch_size: accepted and without effect, as are the two after it.
    """

    spec = plugin.CACHED_MULTIPLE_NEGATIVES_SYMMETRIC_RANKING

    def __init__(
        self,
        scale: float = 20.0,
        similarity_fct: Any = "cosine",
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__(scale, similarity_fct)
        _not_chunked_here(mini_batch_size, mini_batch_num_tokens, show_progress_bar)
        self.mini_batch_size, self.mini_batch_num_tokens = mini_batch_size, mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar


class GISTEmbedLoss(Loss):
    """In-batch softmax without the candidates that a frozen guide finds closer than the positive.

    Args:
        guide: folder or hub id of a model, or an `Encoder`. It is frozen, in evaluation mode, tokenises for itself and sees
            the texts without the trained model's prompts.
        temperature: what cosines are divided by, above 0.
        margin_strategy: "absolute" or "relative" (to the size of the positive's cosine).
        margin: a candidate is dropped if the guide's cosine is above that of the positive less this; any finite number.
        contrast_anchors: other rows' anchors are candidates.
        contrast_positives: other rows' positives are compared with the row's positive, too.
        guide_prompt: text put before every text that the guide sees.

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
    ) -> None:
        super().__init__()
        if guide is None or guide == "":
            raise ValueError("guide must name a model (a folder or hub id) or be an Encoder")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0; got {temperature}")
        if not -float("inf") < margin < float("inf"):
            raise ValueError(f"margin must be finite; got {margin}")
        object.__setattr__(self, "guide", guide)  # not a submodule: it is neither trained nor saved
        self.temperature = temperature
        self.margin_strategy = _one_of("margin_strategy", margin_strategy, ("absolute", "relative"))
        self.margin = margin
        self.contrast_anchors, self.contrast_positives = contrast_anchors, contrast_positives
        self.guide_prompt = guide_prompt

    def requires(self) -> Requirements:
        """The guide's embeddings."""
        prompts = {self.guide: self.guide_prompt} if self.guide_prompt else {}
        return Requirements(guides=(self.guide,), guide_prompts=prompts, recompute=self.spec.recompute)

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss and `active`, the share of rows that kept a candidate beside the positive."""
        guide = emb.guide(self.guide)
        hard = "negative" in emb
        for role in emb.roles:
            if len(guide.own(role)) != len(emb.own(role)):
                raise EmbedlossError(
                    "E206", f"the guide has {len(guide.own(role))} embeddings of role '{role}', the model {len(emb.own(role))}."
                )
        loss, active = F.guided_ranking(
            emb.pool("anchor"),
            emb.pool("positive"),
            emb.pool("negative") if hard else None,
            guide.pool("anchor"),
            guide.pool("positive"),
            guide.pool("negative") if hard else None,
            temperature=self.temperature,
            margin=self.margin,
            relative=self.margin_strategy == "relative",
            contrast_anchors=self.contrast_anchors,
            contrast_positives=self.contrast_positives,
            **_own_rows(emb),
        )
        return _output(loss, active, emb)


class CachedGISTEmbedLoss(GISTEmbedLoss):
    """`GISTEmbedLoss` for batches that do not fit: the encoder keeps the activations of one chunk only.

    Args:
        guide: this and the others up to `guide_prompt` as in `GISTEmbedLoss`.
        mini_batch_size: accepted and without effect, as are the two after it: chunks are the encoder's, bounded in tokens.
    """

    spec = plugin.CACHED_GIST_EMBED

    def __init__(
        self,
        guide: Any,
        temperature: float = 0.01,
        margin_strategy: str = "absolute",
        margin: float = 0.0,
        contrast_anchors: bool = True,
        contrast_positives: bool = True,
        guide_prompt: str | None = None,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__(guide, temperature, margin_strategy, margin, contrast_anchors, contrast_positives, guide_prompt)
        _not_chunked_here(mini_batch_size, mini_batch_num_tokens, show_progress_bar)
        self.mini_batch_size, self.mini_batch_num_tokens = mini_batch_size, mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar


class MegaBatchMarginLoss(Loss):
    """Margins on the cosines of each anchor with its positive and with the hardest other positive of a large batch.

    Args:
        positive_margin: the positive's cosine should be at least this; in [-1, 1].
        negative_margin: the hardest other one's should be at most this; in [-1, 1].
        use_mini_batched_version: look at `mini_batch_size` rows at a time instead of all; value and gradient are the same.
        mini_batch_size: rows looked at at a time, at least 1.

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
    ) -> None:
        super().__init__()
        for name, value in (("positive_margin", positive_margin), ("negative_margin", negative_margin)):
            if not -1 <= value <= 1:
                raise ValueError(f"{name} is compared with a cosine, so it must lie in [-1, 1]; got {value}")
        if not (isinstance(mini_batch_size, int) and mini_batch_size >= 1):
            raise ValueError(f"mini_batch_size must be a whole number of at least 1; got {mini_batch_size}")
        self.positive_margin, self.negative_margin = positive_margin, negative_margin
        self.use_mini_batched_version, self.mini_batch_size = use_mini_batched_version, mini_batch_size

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The loss and `active`, the share of rows that violate a margin."""
        loss, active = F.mega_batch_margin(
            emb.pool("anchor"),
            emb.pool("positive"),
            positive_margin=self.positive_margin,
            negative_margin=self.negative_margin,
            tile=self.mini_batch_size if self.use_mini_batched_version else max(len(emb), 1),
            **_own_rows(emb),
        )
        return _output(loss, active, emb)


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


class CachedCrossMultipleNegativesRankingLoss(CrossMultipleNegativesRankingLoss):
    """`CrossMultipleNegativesRankingLoss` for batches that do not fit: the model keeps the activations of one chunk only.

    Args:
        num_negatives: this, `scale` and `activation_fn` as in `CrossMultipleNegativesRankingLoss`.
        mini_batch_size: accepted and without effect, as is the one after it: chunks are the model's, bounded in tokens.
    """

    spec = plugin.CACHED_CROSS_MULTIPLE_NEGATIVES_RANKING

    def __init__(
        self,
        num_negatives: int | None = 4,
        scale: float | None = 10.0,
        activation_fn: Any = "sigmoid",
        mini_batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__(num_negatives, scale, activation_fn)
        _not_chunked_here(mini_batch_size, None, show_progress_bar)
        self.mini_batch_size, self.show_progress_bar = mini_batch_size, show_progress_bar
