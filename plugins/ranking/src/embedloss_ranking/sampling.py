"""Drawing in-batch negatives for models that score pairs. No torch."""

from __future__ import annotations

import random
from typing import Any


def with_in_batch_negatives(
    rows: list[dict[str, Any]], format_name: str, count: int | None, rng: random.Random
) -> tuple[list[dict[str, Any]], str]:
    """Rows with `count` documents of other rows added to their negatives, drawn without replacement from distinct texts.

    A text is never drawn for a row that has it as positive or negative itself, nor for a row whose anchor it is a positive
    of elsewhere in the batch.

    Args:
        rows: anchor, positive and possibly negative (a text or a list of texts).
        format_name: pairs, triplets or n-tuples.
        count: how many; None for all there are. A row gets fewer where the batch has fewer.
        rng: source of randomness.

    Returns:
        New rows and their format: n-tuples, or the given one where no row got a negative.
    """
    own = [_texts(row.get("negative")) for row in rows]
    documents = list(
        dict.fromkeys(text for row, negatives in zip(rows, own, strict=True) for text in (row["positive"], *negatives))
    )
    positives: dict[str, set[str]] = {}
    for row in rows:
        positives.setdefault(row["anchor"], set()).add(row["positive"])
    changed = []
    for row, negatives in zip(rows, own, strict=True):
        never = positives[row["anchor"]].union(negatives)
        if count is None or count + len(never) >= len(documents):
            drawn = [text for text in documents if text not in never]
            if count is not None and count < len(drawn):
                drawn = rng.sample(drawn, count)
        else:  # enough for `count` to be left when all that may not be drawn is among them
            drawn = [text for text in rng.sample(documents, count + len(never)) if text not in never][:count]
        changed.append({**row, "negative": [*negatives, *drawn]})
    if not any(row["negative"] for row in changed):
        return rows, format_name
    return changed, "n-tuples"


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
