"""Whether a teacher's values are of a scale that the model's similarities can reach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from embedloss.embeddings import Embeddings, Scores
from embedloss.loss import Loss, Modifier, ScoreLoss, WeightedSum

UNREACHABLE = 0.1  # share of labels out of reach from which on a warning is worth it


def _parts(loss: Loss) -> Iterator[Loss]:
    if isinstance(loss, WeightedSum):
        for _, part in loss.terms:
            yield from _parts(part)
    elif isinstance(loss, Modifier):
        yield from _parts(loss.loss)
    else:
        yield loss


def mismatch(loss: Loss | None, inputs: Any, labels: Tensor) -> str | None:
    """What to say about the scales of labels and scores, or None where they go together.

    Args:
        loss: of this batch.
        inputs: its embeddings or scores.
        labels: as the loss gets them.
    """
    if loss is None or not labels.is_floating_point():
        return None
    for part in _parts(loss):
        kinds = {f.label for f in part.spec.data_formats()}
        if isinstance(part, ScoreLoss) and isinstance(inputs, Embeddings) and not isinstance(inputs, Scores):
            message = _scores(part, labels) if kinds & {"margin", "margins", "scores"} else None
        else:
            message = _vectors(part, inputs, labels) if kinds == {"embedding"} else None
        if message:
            return message
    return None


def _scores(loss: ScoreLoss, labels: Tensor) -> str | None:
    if loss.similarity_fct != "cosine":
        return None
    values = labels[labels.isfinite()]
    if "distribution" in loss.spec.summary:  # only differences of a row's scores count
        reach, values = 2 * loss.scale, (labels.amax(1) - labels.amin(1)) if labels.ndim == 2 else values
    else:
        reach = 2 * loss.scale
        values = values.abs()
    share = float((values > reach).float().mean()) if values.numel() else 0.0
    if share <= UNREACHABLE:
        return None
    factor = float(values.quantile(0.99)) / 2
    return (
        f"the teacher's values differ by up to {float(values.max()):.3g}, but cosine similarities times scale {loss.scale:g} "
        f"differ by {reach:g} at most: {share:.0%} of the first labels cannot be reached. "
        f"Type {loss.spec.name.replace('-', '_')}(scale={factor:.2g}), similarity_fct='dot', or --scale-labels."
    )


def _vectors(loss: Loss, inputs: Any, labels: Tensor) -> str | None:
    if getattr(loss, "distance_metric", "") == "cosine" or getattr(loss, "projection_dim", None) or inputs is None:
        return None
    student = inputs.own(inputs.roles[0]).detach().float().norm(dim=-1)
    teacher = labels.float().norm(dim=-1)
    fixed = bool(torch.allclose(student, torch.ones_like(student), atol=1e-3))
    mean = float(teacher.mean())
    if not fixed or 0.5 <= mean <= 2:
        return None
    return (
        f"the teacher's vectors have a length of {mean:.3g}, the model's are scaled to length 1 and cannot reach them. "
        "Scale the teacher's vectors to length 1, or type embed_distill(distance_metric='cosine')."
    )
