"""Arithmetic of losses that put pairs of texts into classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pair_features(u: Tensor, v: Tensor, rep: bool, difference: bool, multiplication: bool) -> Tensor:
    """(rows, parts * dim): u and v, |u - v|, u * v, as chosen, side by side. u and v are (rows, dim)."""
    return torch.cat([u, v] * rep + [(u - v).abs()] * difference + [u * v] * multiplication, 1)


def counted(targets: Tensor, ignore_index: int = -100) -> Tensor:
    """(rows,) True where a row has a class: everywhere with probabilities, not where the id is `ignore_index`."""
    return targets != ignore_index if targets.ndim == 1 else torch.ones(len(targets), dtype=torch.bool, device=targets.device)


def cross_entropy_sums(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, weight: Tensor | None = None, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """(sum over rows of the cross-entropy, what to divide it by: the rows that count, or the sum of their class weights).

    Args:
        logits: (rows, classes).
        targets: (rows,) class ids, or (rows, classes) probabilities in the dtype of the logits.
        label_smoothing: share of the target that is spread evenly over the classes.
        weight: (classes,) or None.
        ignore_index: id of rows that do not count.
    """
    skipped = ignore_index if targets.ndim == 1 else -100  # probabilities have no id that could be ignored
    total = F.cross_entropy(logits, targets, weight, reduction="sum", ignore_index=skipped, label_smoothing=label_smoothing)
    rows = counted(targets, ignore_index)
    if weight is not None and targets.ndim == 1:
        return total, weight[targets[rows]].sum()
    return total, rows.sum()


def multi_margin_sums(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    """(sum over rows of the mean over classes of max(0, 1 - logit of the own class + logit of another), rows that count).

    Args:
        logits: (rows, classes).
        targets: (rows,) class ids.
        ignore_index: id of rows that do not count.
    """
    rows = counted(targets, ignore_index)
    own = logits.gather(1, targets.clamp(min=0)[:, None])
    others = F.one_hot(targets.clamp(min=0), logits.shape[1]) == 0
    terms = torch.relu(1 - own + logits) * (others & rows[:, None])
    return terms.sum() / logits.shape[1], rows.sum()


def class_metrics(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> dict[str, Tensor]:
    """`accuracy`, the share of the rows that count whose highest logit is that of their (most probable) class, 0 without such
    rows; and `active`, the share of rows that count.
    """
    rows = counted(targets, ignore_index)
    ids = targets if targets.ndim == 1 else targets.argmax(1)
    right = (logits.argmax(1) == ids) & rows
    active = rows.to(logits.dtype).mean()
    return {"accuracy": right.sum().to(logits.dtype) / rows.sum().clamp(min=1), "active": active}
