"""Distillation losses: from a teacher's vectors, scores, margins or distributions."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embedloss.embeddings import Embeddings
from embedloss.errors import EmbedlossError
from embedloss.loss import Loss, MeanScoreLoss, ModelInfo
from embedloss_distillation.functional import (
    DISTANCES,
    embedding_distance,
    kl_divergence,
    margin_mse,
    project,
    squared_error,
)
from embedloss_distillation.plugin import DISTILL_KL_DIV, EMBED_DISTILL, MARGIN_MSE, MSE, SCORE_MSE


class EmbedDistillLoss(Loss):
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

    def __init__(self, distance_metric: str = "cosine", projection_dim: int | None = None) -> None:
        super().__init__()
        if distance_metric not in DISTANCES:
            raise ValueError(f"distance_metric must be one of {', '.join(DISTANCES)}; got {distance_metric!r}")
        if projection_dim is not None and (not isinstance(projection_dim, int) or projection_dim < 1):
            raise ValueError(f"projection_dim must be an integer of at least 1, or None, got {projection_dim!r}")
        self.distance_metric, self.projection_dim = distance_metric, projection_dim
        self.projection: nn.Linear | None = None

    # -- the projection ----------------------------------------------------------------------------------------------------
    def prepare(self, info: ModelInfo) -> None:
        """Make the projection and compare the sizes of student and teacher before training (E105, E302)."""
        wanted = self.projection_dim or info.dimension
        if info.label_dimension is not None and info.label_dimension != wanted:
            raise EmbedlossError("E105", self._wrong_size(info.label_dimension, wanted))
        self._projection_for(info.dimension)

    def _projection_for(self, dimension: int, like: Tensor | None = None) -> nn.Linear | None:
        if self.projection_dim is not None and self.projection is None:
            # As nn.Linear starts, seeded as the process is, but without moving its random numbers.
            generator = torch.Generator().manual_seed(torch.initial_seed())
            made = nn.Linear(dimension, self.projection_dim, device="meta").to_empty(device="cpu")
            with torch.no_grad():
                for parameter in (made.weight, made.bias):
                    parameter.uniform_(-(dimension**-0.5), dimension**-0.5, generator=generator)
            self.projection = made if like is None else made.to(like.device, like.dtype)
        if self.projection is not None and self.projection.in_features != dimension:
            raise EmbedlossError(
                "E302",
                f"the projection of '{self.spec.name}' takes embeddings of {self.projection.in_features} dimensions; this "
                f"model gives {dimension}.",
            )
        return self.projection

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any, **named: Any) -> None:
        # A loss that has seen no model yet takes the projection's size from what is loaded.
        weight = state_dict.get(f"{prefix}projection.weight")
        if weight is not None and self.projection is None:
            self.projection_dim = weight.shape[0]
            self.projection = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    def save_projection(self, path: str | os.PathLike[str]) -> None:
        """Write the projection as safetensors (`weight`, `bias`). ValueError if there is none."""
        from safetensors.torch import save_file

        if self.projection is None:
            raise ValueError(
                "there is no projection to save. Give projection_dim, and prepare the loss or use it once: its input size is "
                "the model's."
            )
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in self.projection.state_dict().items()}, str(path))

    def load_projection(self, path: str | os.PathLike[str]) -> None:
        """Read a projection that `save_projection` wrote; sets `projection_dim` if it was None.

        Raises:
            EmbedlossError: E301 if the file cannot be read.
            ValueError: its sizes differ from those of the loss.
        """
        from safetensors.torch import load_file

        try:
            state = load_file(str(path))
            outputs, inputs = state["weight"].shape
        except Exception as exception:  # safetensors has errors of its own for every kind of damage
            raise EmbedlossError("E301", f"no projection can be read from '{path}': {exception}") from exception
        there = self.projection
        if self.projection_dim not in (None, outputs) or (there is not None and there.in_features != inputs):
            size = there.in_features if there is not None else "any"
            raise ValueError(f"'{path}' maps {inputs} to {outputs} dimensions, this loss {size} to {self.projection_dim}")
        if there is None:
            self.projection, self.projection_dim = nn.Linear(inputs, outputs, dtype=state["weight"].dtype), outputs
        assert self.projection is not None
        self.projection.load_state_dict(state)

    # -- the loss ------------------------------------------------------------------------------------------------------------
    def compute(self, emb: Embeddings, labels: Tensor | None) -> Tensor:
        """Mean over all texts; with lists of equal length, the mean over columns of each column's mean."""
        assert labels is not None  # check_labels has refused it
        role = emb.roles[0]
        student = emb.own(role)
        teacher = self._teacher(labels, emb.lists(role)[1])
        projection = self._projection_for(emb.dimension, student)
        if projection is not None:
            # Labels as short as cut embeddings are cut as well: they meet the projection's first outputs.
            width = teacher.shape[1] if teacher.shape[1] == student.shape[1] else projection.out_features
            student = project(student, projection.weight, projection.bias, min(width, projection.out_features))
        if teacher.shape[1] != student.shape[1]:
            raise EmbedlossError("E105", self._wrong_size(teacher.shape[1], student.shape[1]))
        terms = embedding_distance(student, teacher.to(student.dtype), self.distance_metric)
        # Processes may have different numbers of texts: the mean over all of them, not the mean of means.
        count = max(len(emb.pool_rows_of(role)), 1)
        return terms.sum() * (emb.world_size / count)

    def _teacher(self, labels: Tensor, mask: Tensor) -> Tensor:
        """(texts, dim): the teacher's vector of every text, from one vector a row or one a text; mask (rows, texts)."""
        if labels.ndim == 2:
            labels = labels[:, None].expand(-1, mask.shape[1], -1)
        if labels.ndim != 3 or labels.shape[:2] != mask.shape:
            raise EmbedlossError(
                "E105",
                f"'{self.spec.name}' takes one vector a row, ({len(mask)}, dim), or one a text, ({len(mask)}, {mask.shape[1]}, "
                f"dim); got labels {tuple(labels.shape)}.",
            )
        return labels.detach()[mask]

    def _wrong_size(self, found: int, wanted: int) -> str:
        repair = f"Type: {self.spec.name.replace('-', '_')}(projection_dim={found})"
        return f"the teacher's vectors have {found} dimensions, '{self.spec.name}' compares them with {wanted}. {repair}"


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


def _reduction(value: str) -> str:
    if value not in ("mean", "sum"):
        raise ValueError(f"reduction must be one of mean, sum; got {value!r}")
    return value


def _refuse(name: str, labels: Tensor, bad: Tensor, what: str) -> None:
    if bool(bad.any()):
        row = int(bad.reshape(len(labels), -1).any(1).nonzero()[0]) + 1
        raise EmbedlossError("E105", f"row {row} of this batch {what}; '{name}' cannot use it.")


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
        self.keep_score_parameters(similarity_fct, scale, activation_fn)
        self.reduction = _reduction(reduction)

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Items are rows."""
        labels = labels[:, None] if labels.ndim == 1 else labels
        if labels.shape != scores.shape:
            raise EmbedlossError(
                "E206", f"'{self.spec.name}' got labels {tuple(labels.shape)} for scores {tuple(scores.shape)}."
            )
        _refuse(self.spec.name, labels, mask & ~labels.isfinite(), "has a label that is not finite")
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
        self.keep_score_parameters(similarity_fct, scale, activation_fn)
        self.reduction = _reduction(reduction)

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Items are margins."""
        negatives = scores.shape[1] - 1
        labels = labels[:, None] if labels.ndim == 1 else labels
        if negatives < 1 or labels.shape not in ((len(scores), negatives), (len(scores), negatives + 1)):
            raise EmbedlossError(
                "E206",
                f"'{self.spec.name}' takes margins ({len(scores)}, {negatives}) or scores ({len(scores)}, {negatives + 1}) for "
                f"a positive and {negatives} negatives; got labels {tuple(labels.shape)}.",
            )
        there = mask if labels.shape[1] > negatives else mask[:, 1:] & mask[:, :1]
        _refuse(self.spec.name, labels, there & ~labels.isfinite(), "has a label that is not finite")
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
        self.keep_score_parameters(similarity_fct, scale, activation_fn)
        self.temperature = temperature
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        for name in ("temperature", "student_temperature", "teacher_temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value!r}")
        self._looked = False

    def sums(self, scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Items are rows."""
        name = self.spec.name
        if labels.shape != scores.shape or scores.shape[1] < 2:
            raise EmbedlossError(
                "E206",
                f"'{name}' takes one teacher score a candidate and at least 2 candidates: got labels {tuple(labels.shape)} for "
                f"scores {tuple(scores.shape)}. Over one candidate a softmax is constant.",
            )
        teacher = labels.to(scores.dtype).masked_fill(~mask, 0)
        _refuse(name, teacher, teacher.isnan() | (teacher == math.inf), "has a teacher score that is NaN or inf")
        left_out = ((teacher == -math.inf) | ~mask).all(1) & mask.any(1)
        _refuse(name, teacher, left_out, "has only teacher scores of -inf, so that no candidate is left")
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
