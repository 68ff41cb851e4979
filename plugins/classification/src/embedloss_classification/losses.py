"""Losses that classify pairs of texts: on two embeddings, or on a cross-encoder's scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedloss.distributed import sum_over_processes
from embedloss.embeddings import Embeddings, Scores
from embedloss.linear import LinearLoss, project
from embedloss.loss import Loss, LossOutput, MeanScoreLoss, ModelInfo
from embedloss.spec import LossSpec
from embedloss.validate import count, must_be, named, optional, positive, share
from embedloss_classification.functional import class_metrics, cross_entropy_sums, multi_margin_sums, pair_features
from embedloss_classification.plugin import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, SOFTMAX

IGNORED = -100
LOSS_FUNCTIONS = ("cross-entropy", "multi-margin")
_FIELD_NAMES = {"CrossEntropyLoss": "cross-entropy", "MultiMarginLoss": "multi-margin"}
_REDUCTION = must_be("mean or sum", lambda value: value in ("mean", "sum"))
_LIST = must_be("a list of numbers of at least 0", lambda value: all(0 <= weight < math.inf for weight in value))
_WEIGHTS = optional(lambda name, value: [float(weight) for weight in _LIST(name, value)])
_FACTOR = optional(lambda name, value: positive(name, float(value)))


class _ClassLoss(Loss):
    """A loss of logits of classes."""

    def targets(self, labels: Tensor, classes: int, has: str, ignore_index: int = IGNORED) -> Tensor:
        """Ids (rows,) int64 or probabilities (rows, classes), checked; E105 names the row, the label and `classes`."""
        if labels.ndim == 2:
            if labels.shape[1] != classes:
                raise self.error("E105", f"got labels of {labels.shape[1]} class probabilities, but {has} {classes}.")
            labels = labels.to(torch.promote_types(labels.dtype, torch.float32))
            wrong = (labels < 0).any(1) | ((labels.sum(1) - 1).abs() > 1e-3)
            self.refuse(wrong, "got class probabilities in row {row} that are negative or do not sum to 1.")
            return labels
        if labels.is_floating_point() or labels.ndim > 2:
            raise self.error("E105", "takes class ids (whole numbers 0, 1, ...) or one probability a class.")
        ids = labels.long()
        wrong = ((ids < 0) | (ids >= classes)) & (ids != ignore_index)
        self.refuse(wrong, f"got class {{value}} in row {{row}} of this batch, but {has} {classes}.", ids)
        return ids


MOST_CLASSES = 10_000_000


class SoftmaxLoss(LinearLoss, _ClassLoss):
    """A classifier on the embeddings of two texts (Reimers and Gurevych 2019, arXiv 1908.10084).

    The classifier is the loss's own weight: optimised, saved and synchronised with the encoder. It is made by `prepare`, by
    loading a state, or at the first call; its start depends on torch's seed only.

    Args:
        embedding_dimension: size of the embeddings; None: the model's.
        num_labels: number of classes; None: that of the training data.
        concatenation_sent_rep: classify by u and v.
        concatenation_sent_difference: classify by |u - v|.
        concatenation_sent_multiplication: classify by u * v.
        loss_fct: "cross-entropy", or "multi-margin" (a hinge of margin 1, for class ids only).
        label_smoothing: share of the target spread over all classes; with cross-entropy only.
    """

    spec = SOFTMAX
    parameter_aliases: ClassVar[dict[str, str]] = {"sentence_embedding_dimension": "embedding_dimension"}
    linear_name = "classifier"

    def __init__(
        self,
        embedding_dimension: int | None = None,
        num_labels: int | None = None,
        concatenation_sent_rep: bool = True,
        concatenation_sent_difference: bool = True,
        concatenation_sent_multiplication: bool = False,
        loss_fct: str = "cross-entropy",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.keep(
            locals(),
            embedding_dimension=optional(count),
            num_labels=optional(count),
            loss_fct=named(LOSS_FUNCTIONS, _FIELD_NAMES),
            label_smoothing=share,
        )
        if label_smoothing and self.loss_fct != "cross-entropy":
            raise ValueError("label_smoothing goes with loss_fct='cross-entropy'")
        self.bind_spec(type(self).spec)
        if not self.parts:
            raise ValueError("at least one of the three concatenation_sent_... parameters must be True")
        if embedding_dimension and num_labels:
            self.make_linear(self.parts * embedding_dimension, num_labels)

    @property
    def chosen(self) -> tuple[bool, bool, bool]:
        """Which of (u and v), |u - v| and u * v are classified."""
        difference = bool(self.concatenation_sent_difference)
        return bool(self.concatenation_sent_rep), difference, bool(self.concatenation_sent_multiplication)

    def bind_spec(self, spec: LossSpec) -> None:
        """With a number of classes, the highest id is known before any model is loaded."""
        self.spec = replace(spec, highest_label=self.num_labels - 1) if self.num_labels else spec

    @property
    def parts(self) -> int:
        """Vectors that are put side by side before the classifier."""
        return sum(self.chosen) + self.chosen[0]

    def prepare(self, info: ModelInfo) -> None:
        """Make the classifier, or compare the one there is with the model and the data.

        Raises:
            EmbedlossError: E203 if the number of classes is not known, or the dimension is another than the model's; E105 if
                the data has more classes than the classifier.
        """
        classes = self.num_labels or info.num_classes
        if self.classifier is None:
            if not classes:
                raise self.error("E203", "needs the number of classes. Type: softmax(num_labels=3)")
            if classes > MOST_CLASSES:
                raise self.error(
                    "E105", f"has one output a class id, but the highest id is {classes - 1:,}. Number them 0, 1, 2."
                )
            self.make_linear(self.parts * (self.embedding_dimension or info.dimension), classes)
        inputs, outputs = self._made().in_features // self.parts, self._made().out_features
        if inputs != info.dimension:
            raise self.error("E203", f"has embedding_dimension {inputs}, but the model gives {info.dimension}.")
        if info.num_classes and info.num_classes > outputs:
            raise self.error("E105", f"has num_labels {outputs}, but the data has {info.num_classes} classes.")

    def _made(self) -> nn.Linear:
        if self.linear is None:
            raise self.error("E203", "has no classifier yet. Type: softmax(384, num_labels=3)")
        return self.linear

    def predict(self, emb: Embeddings) -> Tensor:
        """(rows, num_labels) logits of the pairs of `first` and `second`."""
        made, u, v = self._made(), emb.own("first"), emb.own("second")
        inputs = made.in_features // self.parts
        if u.shape[1] > inputs:
            raise self.error("E206", f"was made for embeddings of dimension {inputs}, got {u.shape[1]}.")
        return project(pair_features(u, v, *self.chosen), made.weight, made.bias, parts=self.parts)

    def compute(self, emb: Embeddings, labels: Tensor) -> LossOutput:
        """The mean over the rows of all processes that have a class; metrics `accuracy` and `active` of the own rows."""
        if self.classifier is None:
            classes = self.num_labels
            if not classes:  # as many as this batch shows
                classes = labels.shape[1] if labels.ndim == 2 else max(int(emb.gathered(labels).max()), 0) + 1
            self.make_linear(self.parts * (self.embedding_dimension or emb.dimension), classes, emb.device)
        logits = self.predict(emb)
        targets = self.targets(labels, logits.shape[1], "num_labels is").detach()
        if self.loss_fct == "cross-entropy":
            targets = targets.to(logits.dtype) if targets.ndim == 2 else targets
            total, rows = cross_entropy_sums(logits, targets, self.label_smoothing)
        elif targets.ndim == 1:
            total, rows = multi_margin_sums(logits, targets)
        else:
            raise self.error("E105", "with loss_fct='multi-margin' takes class ids, not probabilities.")
        if emb.world_size > 1:
            rows = sum_over_processes(rows)
        value = total * emb.world_size / rows.clamp(min=1) + (logits * 0).sum()
        return LossOutput.of(value, **class_metrics(logits, targets))


class BinaryCrossEntropyLoss(MeanScoreLoss):
    """A score of two texts as the log-odds that they belong together, on both kinds of model.

    Args:
        activation_fn: put on the scores first: "identity", "sigmoid", "tanh" or "relu".
        pos_weight: weight of the positive part, above 0; None: 1.
        reduction: "mean" over rows, or "sum".
        similarity_fct: of a bi-encoder's embeddings: "cosine", "dot", "euclidean" or "manhattan".
        scale: factor of these similarities; a cross-encoder's scores are taken as they are.
    """

    spec = BINARY_CROSS_ENTROPY

    def __init__(
        self,
        activation_fn: Any = "identity",
        pos_weight: float | None = None,
        reduction: str = "mean",
        similarity_fct: Any = "cosine",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.keep(locals(), pos_weight=_FACTOR, reduction=_REDUCTION)

    def prepare(self, info: ModelInfo) -> None:
        """E302 for a cross-encoder with several outputs."""
        if getattr(info.encoder, "kind", None) == "cross-encoder" and info.dimension != 1:
            needed = f"needs a cross-encoder with 1 output; this one has {info.dimension}. "
            raise self.error("E302", needed + "For several classes use cross-entropy.")

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Over the pairs of texts. Labels are (rows,), or (rows, candidates) for several texts a row."""
        if labels.ndim == 1 and scores.shape[1] == 1:
            labels = labels[:, None]
        if labels.shape != scores.shape:
            raise self.error(
                "E206",
                f"takes one score a label; got scores of shape {tuple(scores.shape)} and labels of shape "
                f"{tuple(labels.shape)}. A cross-encoder needs one output; for several classes use cross-entropy.",
            )
        labels = labels.masked_fill(~mask, 0)
        found = "takes labels from 0 to 1; row {row} of this batch has {value}. Type --scale-labels."
        self.refuse((labels < 0) | (labels > 1), found, labels)
        weight = None if self.pos_weight is None else scores.new_tensor(self.pos_weight)
        terms = F.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype), pos_weight=weight, reduction="none")
        return terms.masked_fill(~mask, 0.0).sum(), mask.sum()


class CrossEntropyLoss(MeanScoreLoss, _ClassLoss):
    """The scores of a cross-encoder as logits of classes.

    Args:
        activation_fn: put on the logits first: "identity", "sigmoid", "tanh" or "relu".
        weight: one number a class, or None.
        ignore_index: class id of rows that do not count.
        reduction: "mean" over rows (over their weights, if there are), or "sum".
        label_smoothing: share of the target spread over all classes.
    """

    spec = CROSS_ENTROPY

    def __init__(
        self,
        activation_fn: Any = "identity",
        weight: Sequence[float] | None = None,
        ignore_index: int = IGNORED,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.keep(locals(), weight=_WEIGHTS, reduction=_REDUCTION, label_smoothing=share)

    def check_inputs(self, embeddings: Embeddings | Scores) -> None:
        """E206 for embeddings: the classes are outputs of the model."""
        if not isinstance(embeddings, Scores):
            raise self.error("E206", "takes Scores (rows, classes) of a cross-encoder. For embeddings use softmax.")

    def prepare(self, info: ModelInfo) -> None:
        """E105 if the data has more classes than the model has outputs."""
        if info.encoder is not None and info.num_classes and info.num_classes > info.dimension:
            found = f"the data has {info.num_classes} classes, but the number of the model's outputs is {info.dimension}."
            raise self.error("E105", f"cannot train this model: {found}")

    def class_targets(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The labels as ids, or as probabilities in the dtype of the scores; E105 or E203 if they, or weights, do not fit."""
        classes = scores.shape[1]
        if classes < 2:
            raise self.error("E105", f"needs a model with one output a class; this one has {classes} output.")
        if self.weight is not None and len(self.weight) != classes:
            raise self.error("E203", f"has {len(self.weight)} class weights, but the model has {classes} outputs.")
        targets = self.targets(labels, classes, "the number of the model's outputs is", self.ignore_index)
        return targets.to(scores.dtype) if targets.ndim == 2 else targets

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Over the rows that have a class."""
        weight = None if self.weight is None else scores.new_tensor(self.weight)
        targets = self.class_targets(scores, labels)
        return cross_entropy_sums(scores, targets, self.label_smoothing, weight, self.ignore_index)

    def compute(self, emb: Embeddings | Scores, labels: Tensor) -> LossOutput:
        """As every score loss, with the metrics `accuracy` and `active` of the own rows."""
        assert isinstance(emb, Scores)
        logits = self.activated(emb.values, emb.mask).detach()
        metrics = class_metrics(logits, self.class_targets(logits, labels), self.ignore_index)
        return replace(LossOutput.of(super().compute(emb, labels)), metrics=metrics)
