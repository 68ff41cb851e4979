"""Distillation losses: from a teacher's vectors, scores, margins or distributions."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embedloss.embeddings import Embeddings
from embedloss.errors import EmbedlossError
from embedloss.linear import LinearLoss, project
from embedloss.loss import MeanScoreLoss, ModelInfo
from embedloss.validate import count, one_of, optional, positive
from embedloss_distillation.functional import DISTANCES, embedding_distance, kl_divergence, margin_mse, squared_error
from embedloss_distillation.plugin import DISTILL_KL_DIV, EMBED_DISTILL, MARGIN_MSE, MSE, SCORE_MSE

_POSITIVE = optional(positive)


class EmbedDistillLoss(LinearLoss):
    """Mean distance of the student's embeddings, projected if wanted, to a teacher's vectors.

    Args:
        distance_metric: "cosine" (1 - cosine), "l2" (Euclidean) or "mse" (mean of squared differences of coordinates).
        projection_dim: size of the teacher's vectors where it differs from the student's: a linear map with bias is trained
            along. None: none.

    The projection is the loss's own weight: it is saved and resumed with the loss's state, and alone by `save_projection`.
    Embeddings that a modifier has cut to d coordinates use its first d inputs.

    Paper: Kim et al. 2023, EmbedDistill, arXiv 2301.12005.
    """

    spec = EMBED_DISTILL
    parameter_aliases: ClassVar[dict[str, str]] = {"distance": "distance_metric"}
    linear_name = "projection"

    def __init__(self, distance_metric: str = "cosine", projection_dim: int | None = None) -> None:
        super().__init__()
        self.keep(locals(), distance_metric=one_of(*DISTANCES), projection_dim=optional(count))

    # -- the projection ----------------------------------------------------------------------------------------------------
    def prepare(self, info: ModelInfo) -> None:
        """Make the projection and compare the sizes of student and teacher before training (E105, E302)."""
        wanted = self.projection_dim or info.dimension
        if info.label_dimension is not None and info.label_dimension != wanted:
            raise self.wrong_size(info.label_dimension, wanted)
        self._projection_for(info.dimension)

    def make_linear(self, inputs: int, outputs: int, device: Any = None, dtype: Any = None) -> nn.Linear:
        """Make the projection; its size is that of the teacher's vectors."""
        self.projection_dim = outputs
        return super().make_linear(inputs, outputs, device, dtype)

    def _projection_for(self, dimension: int, like: Tensor | None = None) -> nn.Linear | None:
        if self.projection_dim is not None and self.linear is None:
            self.make_linear(dimension, self.projection_dim, getattr(like, "device", None), getattr(like, "dtype", None))
        made = self.linear
        if made is not None and made.in_features != dimension:
            takes = f"takes embeddings of {made.in_features} dimensions; this model gives {dimension}."
            raise EmbedlossError("E302", f"the projection of '{self.spec.name}' {takes}")
        return made

    def save_projection(self, path: str | os.PathLike[str]) -> None:
        """Write the projection as safetensors (`weight`, `bias`). ValueError if there is none."""
        self.save_linear(path)

    def load_projection(self, path: str | os.PathLike[str]) -> None:
        """Read a projection that `save_projection` wrote; sets `projection_dim` if it was None.

        Raises:
            EmbedlossError: E301 if the file cannot be read.
            ValueError: its sizes differ from those of the loss.
        """
        self.load_linear(path, self.projection_dim)

    # -- the loss ------------------------------------------------------------------------------------------------------------
    def compute(self, emb: Embeddings, labels: Tensor) -> Tensor:
        """Mean over all texts; with lists of equal length, the mean over columns of each column's mean."""
        role = emb.roles[0]
        student = emb.own(role)
        teacher = self._teacher(labels, emb.lists(role)[1])
        projection = self._projection_for(emb.dimension, student)
        if projection is not None:
            # Labels as short as cut embeddings are cut as well: they meet the projection's first outputs.
            width = teacher.shape[1] if teacher.shape[1] == student.shape[1] else projection.out_features
            student = project(student, projection.weight, projection.bias, min(width, projection.out_features))
        if teacher.shape[1] != student.shape[1]:
            raise self.wrong_size(teacher.shape[1], student.shape[1])
        return emb.joint_mean(embedding_distance(student, teacher.to(student.dtype), self.distance_metric), role)

    def _teacher(self, labels: Tensor, mask: Tensor) -> Tensor:
        """(texts, dim): the teacher's vector of every text, from one vector a row or one a text; mask (rows, texts)."""
        if labels.ndim == 2:
            labels = labels[:, None].expand(-1, mask.shape[1], -1)
        if labels.ndim != 3 or labels.shape[:2] != mask.shape:
            shapes = f"({len(mask)}, dim), or one a text, ({len(mask)}, {mask.shape[1]}, dim)"
            raise self.error("E105", f"takes one vector a row, {shapes}; got labels {tuple(labels.shape)}.")
        return labels.detach()[mask]

    def wrong_size(self, found: int, wanted: int) -> EmbedlossError:
        """E105: the teacher's vectors have another size than the student's."""
        repair = f"Type: {self.spec.name.replace('-', '_')}(projection_dim={found})"
        compared = f"the teacher's vectors have {found} dimensions, '{self.spec.name}' compares them with {wanted}."
        return EmbedlossError("E105", f"{compared} {repair}")


class MSELoss(EmbedDistillLoss):
    """Mean squared difference of the coordinates of the student's embeddings and a teacher's vectors.

    Args:
        projection_dim: size of the teacher's vectors where it differs from the student's; see `EmbedDistillLoss`.

    Paper: Reimers and Gurevych 2020, Making Monolingual Sentence Embeddings Multilingual, arXiv 2004.09813.
    """

    spec = MSE
    parameter_aliases: ClassVar[dict[str, str]] = {}

    def __init__(self, projection_dim: int | None = None) -> None:
        super().__init__("mse", projection_dim)


class ScoreMSELoss(MeanScoreLoss):
    """Mean squared difference of score and label.

    Args:
        activation_fn: applied to the scores: "identity", "sigmoid", "tanh", "relu" or None.
        reduction: "mean" or "sum" over rows.
        similarity_fct: similarity of the two texts on a bi-encoder.
        scale: factor of these similarities.

    Paper: Hofstätter et al. 2020, Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation,
    arXiv 2010.02666.
    """

    spec = SCORE_MSE

    def __init__(
        self, activation_fn: Any = "identity", reduction: str = "mean", similarity_fct: Any = "cosine", scale: float = 1.0
    ) -> None:
        super().__init__()
        self.keep(locals())

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Items are rows."""
        labels = labels[:, None] if labels.ndim == 1 else labels
        if labels.shape != scores.shape:
            raise self.error("E206", f"got labels {tuple(labels.shape)} for scores {tuple(scores.shape)}.")
        self.refuse(mask & ~labels.isfinite(), "takes finite labels; row {row} of this batch has {value}.", labels)
        return squared_error(scores, labels, mask)


class MarginMSELoss(MeanScoreLoss):
    """Mean squared difference of the student's and the teacher's margins, score of the positive less score of a negative.

    Args:
        similarity_fct: similarity of query and document on a bi-encoder.
        activation_fn: applied to the scores: "identity", "sigmoid", "tanh", "relu" or None.
        reduction: "mean" or "sum" over margins.
        scale: factor of the similarities of a bi-encoder.

    Paper: Hofstätter et al. 2020, Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation,
    arXiv 2010.02666.
    """

    spec = MARGIN_MSE

    def __init__(
        self, similarity_fct: Any = "dot", activation_fn: Any = "identity", reduction: str = "mean", scale: float = 1.0
    ) -> None:
        super().__init__()
        self.keep(locals())

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Items are margins."""
        negatives = scores.shape[1] - 1
        labels = labels[:, None] if labels.ndim == 1 else labels
        if negatives < 1 or labels.shape not in ((len(scores), negatives), (len(scores), negatives + 1)):
            shapes = f"margins ({len(scores)}, {negatives}) or scores ({len(scores)}, {negatives + 1})"
            wanted = f"takes {shapes} for a positive and {negatives} negatives"
            raise self.error("E206", f"{wanted}; got labels {tuple(labels.shape)}.")
        there = mask if labels.shape[1] > negatives else mask[:, 1:] & mask[:, :1]
        self.refuse(there & ~labels.isfinite(), "takes finite labels; row {row} of this batch has {value}.", labels)
        if labels.shape[1] > negatives:
            labels = labels[:, :1] - labels[:, 1:]
        return margin_mse(scores, labels, mask)

    def teaches(self, labels: Tensor, mask: Tensor) -> Tensor:
        """Rows with at least one negative."""
        return mask[:, 1:].any(1) & mask[:, 0]


class DistillKLDivLoss(MeanScoreLoss):
    """Kullback-Leibler divergence of the student's distribution over a query's candidates from the teacher's.

    Args:
        similarity_fct: similarity of query and document on a bi-encoder.
        temperature: both scores are divided by it; above 0, finite.
        student_temperature: the student's alone; None: `temperature`. The loss is multiplied by its square.
        teacher_temperature: the teacher's alone; None: `temperature`.
        activation_fn: applied to the scores: "identity", "sigmoid", "tanh", "relu" or None.
        scale: factor of the similarities of a bi-encoder.

    Papers: Lin, Yang and Lin 2020, Distilling Dense Representations for Ranking using Tightly-Coupled Teachers,
    arXiv 2010.11386; the square of the temperature from Hinton, Vinyals and Dean 2015, arXiv 1503.02531.
    """

    spec = DISTILL_KL_DIV

    def __init__(
        self,
        similarity_fct: Any = "dot",
        temperature: float = 1.0,
        student_temperature: float | None = None,
        teacher_temperature: float | None = None,
        activation_fn: Any = "identity",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.keep(locals(), temperature=positive, student_temperature=_POSITIVE, teacher_temperature=_POSITIVE)
        self._looked = False

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Items are rows."""
        if labels.shape != scores.shape or scores.shape[1] < 2:
            got = f"got labels {tuple(labels.shape)} for scores {tuple(scores.shape)}"
            takes = "takes one teacher score a candidate and at least 2 candidates, as a softmax over one is constant"
            raise self.error("E206", f"{takes}: {got}.")
        teacher = labels.to(scores.dtype).masked_fill(~mask, 0)
        wrong = teacher.isnan() | (teacher == math.inf)
        self.refuse(wrong, "takes no teacher score {value}, which row {row} of this batch has.", teacher)
        left_out = ((teacher == -math.inf) | ~mask).all(1) & mask.any(1)
        self.refuse(left_out, "needs a candidate a row; row {row} of this batch has only teacher scores of -inf.")
        student = self.temperature if self.student_temperature is None else self.student_temperature
        target = self.temperature if self.teacher_temperature is None else self.teacher_temperature
        self._look_at(teacher, mask, target)
        return kl_divergence(scores, teacher, mask, student, target)

    def _look_at(self, teacher: Tensor, mask: Tensor, temperature: float) -> None:
        """Warn about target probabilities that underflow in the first batch."""
        if self._looked or not bool(mask.any()):
            return
        self._looked = True
        used = mask & teacher.isfinite()
        highest = teacher.masked_fill(~used, -math.inf).amax(1, keepdim=True)
        below = torch.where(used, highest - teacher, 0)
        lost = int((below / temperature > 100).sum())
        if lost:
            warnings.warn(
                f"teacher scores of '{self.spec.name}' lie up to {float(below.max()):.4g} below the best of their row: at "
                f"teacher temperature {temperature:g} the target probability of {lost} of {int(used.sum())} candidates is 0 in "
                f"float32. Type: teacher_temperature={float(below.max()) / 100:.3g} or more",
                stacklevel=2,
            )

    def teaches(self, labels: Tensor, mask: Tensor) -> Tensor:
        """Rows with at least two candidates."""
        return mask.sum(1) > 1
