"""Arithmetic of the denoising auto-encoder: damaging texts and the likelihood of target tokens."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.nn import functional as F


def delete_words(text: str, ratio: float, rng: random.Random) -> str:
    """The text without each word that a draw below `ratio` deletes; at least one word stays.

    Words are what white space separates. A text without words stays as it is.
    """
    words = text.split()
    if not words:
        return text
    kept = [word for word in words if rng.random() >= ratio]
    return " ".join(kept or [rng.choice(words)])


def padding_last(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both (texts, length), with every row's padding moved behind its tokens."""
    real = mask.bool()
    order = real.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    return ids.gather(1, order), real.gather(1, order)


def target_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of every token but the first, given the logits at the token before it.

    Args:
        logits: (texts, length - 1, vocabulary) at the tokens 1..length - 1.
        ids: (texts, length), padding last.
        mask: (texts, length), True where there is a token. It alone says what padding is: the padding token may also be a
            real one (the end of a text).

    Returns:
        The sum over all target tokens, and their number in every text (texts,).
    """
    targets, counts = ids[:, 1:], mask[:, 1:]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    wanted = targets.masked_fill(~counts, -100).flatten()
    return F.cross_entropy(wide.flatten(0, 1), wanted, ignore_index=-100, reduction="sum"), counts.sum(1)
