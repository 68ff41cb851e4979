"""Losses that classify pairs of texts: on two embeddings, or on a cross-encoder's scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedloss.activations import chosen
from embedloss.distributed import sum_over_processes
from embedloss.embeddings import Embeddings, Scores
from embedloss.errors import EmbedlossError
from embedloss.loss import Loss, LossOutput, MeanScoreLoss, ModelInfo
from embedloss_classification.functional import (
    accuracy,
    classify,
    counted,
    cross_entropy_sums,
    multi_margin_sums,
    pair_features,
)
from embedloss_classification.plugin import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, SOFTMAX

IGNORED = -100
LOSS_FUNCTIONS = ("cross-entropy", "multi-margin")
_FIELD_NAMES = {"CrossEntropyLoss": "cross-entropy", "MultiMarginLoss": "multi-margin"}


def _share(value: float, parameter: str) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{parameter} must be from 0 to 1, got {value!r}")
    return value


def _reduction(value: str) -> str:
    if value not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum, got {value!r}")
    return value


def _first(wrong: Tensor) -> int:
    """Index of the first row with a fault. (rows,) or (rows, k)."""
    return int(wrong.reshape(len(wrong), -1).any(1).nonzero()[0])


def _in_unit_interval(labels: Tensor, name: str) -> Tensor:
    outside = (labels < 0) | (labels > 1)
    if bool(outside.any()):
        row = _first(outside)
        found = float(labels[row][outside[row]].reshape(-1)[0])
        raise EmbedlossError(
            "E105", f"'{name}' takes labels from 0 to 1; row {row + 1} of this batch has {found:g}. Type --scale-labels."
        )
    return labels


def _class_targets(labels: Tensor, classes: int, name: str, has: str, ignore_index: int = IGNORED) -> Tensor:
    """Ids (rows,) int64 or probabilities (rows, classes), checked; E105 names the row, the label and `classes`."""
    if labels.ndim == 2:
        if labels.shape[1] != classes:
            raise EmbedlossError("E105", f"'{name}' got labels of {labels.shape[1]} class probabilities, but {has} {classes}.")
        labels = labels.to(torch.promote_types(labels.dtype, torch.float32))
        wrong = (labels < 0).any(1) | ((labels.sum(1) - 1).abs() > 1e-3)
        if bool(wrong.any()):
            raise EmbedlossError("E105", f"the class probabilities of row {_first(wrong) + 1} are negative or do not sum to 1.")
        return labels
    if labels.is_floating_point() or labels.ndim > 2:
        raise EmbedlossError("E105", f"'{name}' takes class ids (whole numbers 0, 1, ...) or one probability a class.")
    ids = labels.long()
    wrong = ((ids < 0) | (ids >= classes)) & (ids != ignore_index)
    if bool(wrong.any()):
        row = _first(wrong)
        raise EmbedlossError("E105", f"'{name}' got class {int(ids[row])} in row {row + 1} of this batch, but {has} {classes}.")
    return ids


class SoftmaxLoss(Loss):
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
    classifier: nn.Linear | None

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
        self.embedding_dimension, self.num_labels = embedding_dimension, num_labels
        self.concatenation_sent_rep = concatenation_sent_rep
        self.concatenation_sent_difference = concatenation_sent_difference
        self.concatenation_sent_multiplication = concatenation_sent_multiplication
        self.loss_fct = chosen(loss_fct, LOSS_FUNCTIONS, "loss_fct", _FIELD_NAMES)
        self.label_smoothing = _share(label_smoothing, "label_smoothing")
        if label_smoothing and self.loss_fct != "cross-entropy":
            raise ValueError("label_smoothing goes with loss_fct='cross-entropy'")
        for name, size in (("embedding_dimension", embedding_dimension), ("num_labels", num_labels)):
            if size is not None and (isinstance(size, bool) or int(size) != size or size < 1):
                raise ValueError(f"{name} must be a positive integer, got {size!r}")
        if not self.parts:
            raise ValueError("at least one of the three concatenation_sent_... parameters must be True")
        self.register_module("classifier", None)
        if embedding_dimension and num_labels:
            self._make_classifier(embedding_dimension, num_labels)

    @property
    def parts(self) -> int:
        """Vectors that are put side by side before the classifier."""
        rep, difference = bool(self.concatenation_sent_rep), bool(self.concatenation_sent_difference)
        return 2 * rep + difference + bool(self.concatenation_sent_multiplication)

    def _make_classifier(self, dimension: int, classes: int, device: torch.device | None = None) -> None:
        # Drawn from a generator of its own: equal on every process with the same seed, whatever was drawn before.
        generator = torch.Generator().manual_seed(torch.initial_seed())
        linear = nn.Linear(self.parts * dimension, classes, device="meta").to_empty(device="cpu")
        bound = 1 / math.sqrt(linear.in_features)
        with torch.no_grad():
            linear.weight.uniform_(-bound, bound, generator=generator)
            linear.bias.uniform_(-bound, bound, generator=generator)
        self.classifier = linear.to(device)

    def prepare(self, info: ModelInfo) -> None:
        """Make the classifier, or compare the one there is with the model and the data.

        Raises:
            EmbedlossError: E203 if the number of classes is not known, or the dimension is another than the model's; E105 if
                the data has more classes than the classifier.
        """
        classes = self.num_labels or info.num_classes
        if self.classifier is None:
            if not classes:
                raise EmbedlossError("E203", f"'{self.spec.name}' needs the number of classes. Type: softmax(num_labels=3)")
            self._make_classifier(self.embedding_dimension or info.dimension, classes)
        made = self._weights()
        dimension = made.in_features // self.parts
        if dimension != info.dimension:
            raise EmbedlossError(
                "E203", f"'{self.spec.name}' has embedding_dimension {dimension}, but the model gives {info.dimension}."
            )
        if info.num_classes and info.num_classes > made.out_features:
            raise EmbedlossError(
                "E105",
                f"'{self.spec.name}' has num_labels {made.out_features}, but the data has {info.num_classes} classes.",
            )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(prefix + "classifier.weight")
        if self.classifier is None and weight is not None:
            self._make_classifier(weight.shape[1] // self.parts, len(weight), weight.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _weights(self) -> nn.Linear:
        if self.classifier is None:
            raise EmbedlossError("E203", f"'{self.spec.name}' has no classifier yet. Type: softmax(384, num_labels=3)")
        return self.classifier

    def predict(self, emb: Embeddings) -> Tensor:
        """(rows, num_labels) logits of the pairs of `first` and `second`."""
        weights = self._weights()
        u, v = emb.own("first"), emb.own("second")
        if u.shape[1] * self.parts > weights.in_features:
            raise EmbedlossError(
                "E206",
                f"'{self.spec.name}' was made for embeddings of dimension {weights.in_features // self.parts}, "
                f"got {u.shape[1]}.",
            )
        features = pair_features(
            u, v, self.concatenation_sent_rep, self.concatenation_sent_difference, self.concatenation_sent_multiplication
        )
        return classify(features, weights.weight, weights.bias)

    @staticmethod
    def _classes_in(emb: Embeddings, labels: Tensor) -> int:
        """Number of classes as far as one batch shows it."""
        if labels.ndim == 2:
            return labels.shape[1]
        return max(int(emb.gathered(labels).max()), 0) + 1

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The mean over the rows of all processes that have a class; metrics `accuracy` and `active` of the own rows."""
        assert labels is not None
        if self.classifier is None:
            dimension = self.embedding_dimension or emb.dimension
            self._make_classifier(dimension, self.num_labels or self._classes_in(emb, labels), emb.device)
        logits = self.predict(emb)
        classes, name = logits.shape[1], self.spec.name
        targets = _class_targets(labels, classes, name, "num_labels is").detach()
        if self.loss_fct == "cross-entropy":
            targets = targets.to(logits.dtype) if targets.ndim == 2 else targets
            total, count = cross_entropy_sums(logits, targets, self.label_smoothing)
        elif targets.ndim == 1:
            total, count = multi_margin_sums(logits, targets)
        else:
            raise EmbedlossError("E105", f"'{name}' with loss_fct='multi-margin' takes class ids, not probabilities.")
        if emb.world_size > 1:
            count = sum_over_processes(count)
        value = total * emb.world_size / count.clamp(min=1) + (logits * 0).sum()
        active = counted(targets).to(logits.dtype).mean()
        return LossOutput.of(value, accuracy=accuracy(logits, targets), active=active)


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
        self.keep_score_parameters(similarity_fct, scale, activation_fn)
        self.pos_weight = None if pos_weight is None else float(pos_weight)
        if self.pos_weight is not None and not 0 < self.pos_weight < math.inf:
            raise ValueError(f"pos_weight must be above 0 and finite, got {pos_weight!r}")
        self.reduction = _reduction(reduction)

    def prepare(self, info: ModelInfo) -> None:
        """E302 for a cross-encoder with several outputs."""
        if getattr(info.encoder, "kind", None) == "cross-encoder" and info.dimension != 1:
            raise EmbedlossError(
                "E302",
                f"'{self.spec.name}' needs a cross-encoder with 1 output; this one has {info.dimension}. "
                "For several classes use cross-entropy.",
            )

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Over the pairs of texts. Labels are (rows,), or (rows, candidates) for several texts a row."""
        if labels.ndim == 1 and scores.shape[1] == 1:
            labels = labels[:, None]
        if labels.shape != scores.shape:
            raise EmbedlossError(
                "E206",
                f"'{self.spec.name}' takes one score a label; got scores of shape {tuple(scores.shape)} and labels of "
                f"shape {tuple(labels.shape)}. A cross-encoder needs one output; for several classes use cross-entropy.",
            )
        labels = _in_unit_interval(labels.masked_fill(~mask, 0), self.spec.name).to(scores.dtype)
        weight = None if self.pos_weight is None else scores.new_tensor(self.pos_weight)
        terms = F.binary_cross_entropy_with_logits(scores, labels, pos_weight=weight, reduction="none")
        return terms.masked_fill(~mask, 0.0).sum(), mask.sum()


class CrossEntropyLoss(MeanScoreLoss):
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
        self.keep_score_parameters("cosine", 1.0, activation_fn)
        if weight is not None and not all(0 <= w < math.inf for w in weight):
            raise ValueError(f"weight must be a list of numbers of at least 0, got {weight!r}")
        self.weight = None if weight is None else [float(w) for w in weight]
        self.ignore_index, self.reduction = ignore_index, _reduction(reduction)
        self.label_smoothing = _share(label_smoothing, "label_smoothing")

    def check_inputs(self, embeddings: Embeddings | Scores) -> None:
        """E206 for embeddings: the classes are outputs of the model."""
        if not isinstance(embeddings, Scores):
            raise EmbedlossError(
                "E206", f"'{self.spec.name}' takes Scores (rows, classes) of a cross-encoder. For embeddings use softmax."
            )

    def prepare(self, info: ModelInfo) -> None:
        """E105 if the data has more classes than the model has outputs."""
        if info.encoder is not None and info.num_classes and info.num_classes > info.dimension:
            raise EmbedlossError(
                "E105",
                f"the data has {info.num_classes} classes, but the number of the model's outputs is {info.dimension}.",
            )

    def _targets(self, scores: Tensor, labels: Tensor) -> Tensor:
        classes, name = scores.shape[1], self.spec.name
        if classes < 2:
            raise EmbedlossError("E105", f"'{name}' needs a model with one output a class; this one has {classes} output.")
        if self.weight is not None and len(self.weight) != classes:
            raise EmbedlossError("E203", f"'{name}' has {len(self.weight)} class weights, but the model has {classes} outputs.")
        targets = _class_targets(labels, classes, name, "the number of the model's outputs is", self.ignore_index)
        return targets.to(scores.dtype) if targets.ndim == 2 else targets

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Over the rows that have a class."""
        weight = None if self.weight is None else scores.new_tensor(self.weight)
        return cross_entropy_sums(scores, self._targets(scores, labels), self.label_smoothing, weight, self.ignore_index)

    def compute(self, emb: Embeddings | Scores, labels: Tensor | None) -> LossOutput:
        """As every score loss, with the metrics `accuracy` and `active` of the own rows."""
        assert isinstance(emb, Scores)
        assert labels is not None
        output = LossOutput.of(super().compute(emb, labels))
        logits = self.activated(emb.values, emb.mask).detach()
        targets = self._targets(logits, labels)
        active = counted(targets, self.ignore_index).to(logits.dtype).mean()
        return replace(output, metrics={"accuracy": accuracy(logits, targets, self.ignore_index), "active": active})
