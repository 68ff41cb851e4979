"""Scores and vectors of the texts of a data set, from either kind of encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedloss.errors import EmbedlossError
from embedloss.evaluation.metrics import Floats, pairwise_similarity
from embedloss.similarity import similarity_name


def similarity_of(encoder: Any, wanted: str | None = None) -> str:
    """The similarity asked for, else the encoder's own, else cosine; E501 for an unknown one."""
    name = wanted or getattr(encoder, "similarity", None)
    try:
        return similarity_name(name if isinstance(name, str) else "cosine")
    except ValueError as exception:
        raise EmbedlossError("E501", str(exception)) from exception


def check_finite(values: Floats) -> Floats:
    """The values; E501 if some are NaN or infinite."""
    if not np.isfinite(values).all():
        raise EmbedlossError("E501", "the encoder gives NaN or infinite values; the training has probably diverged.")
    return values


class Columns:
    """The texts of rows by role, flat, and the row of each.

    Args:
        rows: role -> text or list of texts.
        roles: which roles.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], roles: Sequence[str]) -> None:
        self.texts: dict[str, list[str]] = {}
        self.rows: dict[str, NDArray[np.int64]] = {}
        for role in roles:
            missing = [i for i, row in enumerate(rows) if role not in row]
            if missing:
                raise EmbedlossError("E501", f"row {missing[0] + 1} has no '{role}'; it has {', '.join(rows[missing[0]])}.")
            values = [[row[role]] if isinstance(row[role], str) else list(row[role]) for row in rows]
            self.texts[role] = [text for value in values for text in value]
            self.rows[role] = np.repeat(np.arange(len(rows)), [len(value) for value in values])


class VectorScorer:
    """Scores of pairs by the similarity of their embeddings. Every text is encoded once per prompt.

    Args:
        encoder: anything with `encode(texts, prompt=...)`.
        columns: the texts.
        prompts: role -> prompt.
        options: further arguments of `encode`.
    """

    def __init__(self, encoder: Any, columns: Columns, prompts: Mapping[str, str], options: Mapping[str, Any]) -> None:
        self.columns = columns
        self.vectors: dict[str, Floats] = {}
        by_prompt: dict[str, list[str]] = {}
        for role in columns.texts:
            by_prompt.setdefault(prompts.get(role, ""), []).append(role)
        for prompt, roles in by_prompt.items():
            unique = {text: i for i, text in enumerate(dict.fromkeys(t for role in roles for t in columns.texts[role]))}
            found = check_finite(encoder.encode(list(unique), prompt=prompt, **options))
            for role in roles:
                self.vectors[role] = found[[unique[text] for text in columns.texts[role]]]

    def truncated(self, dimension: int | None) -> VectorScorer:
        """The same with the first components only."""
        if dimension is None:
            return self
        other = object.__new__(VectorScorer)
        other.columns, other.vectors = self.columns, {role: x[:, :dimension] for role, x in self.vectors.items()}
        return other

    def pairs(self, name: str, first: str, second: str) -> Floats:
        """One score a text of the second role: its similarity with its row's text of the first role."""
        rows = self.columns.rows[second]
        return pairwise_similarity(name, self.vectors[first][rows], self.vectors[second])


class CrossScorer:
    """Scores of pairs by a cross-encoder.

    Args:
        encoder: anything with `predict(pairs, prompt=...)`.
        columns: the texts.
        prompts: role -> prompt; only the first role's has a place.
        options: further arguments of `predict`.
    """

    def __init__(self, encoder: Any, columns: Columns, prompts: Mapping[str, str], options: Mapping[str, Any]) -> None:
        self.encoder, self.columns, self.prompts, self.options = encoder, columns, prompts, options

    def predict(self, first: str, second: str) -> Floats:
        """(pairs,) or (pairs, labels)."""
        texts, rows = self.columns.texts, self.columns.rows[second]
        pairs = [(texts[first][row], text) for row, text in zip(rows, texts[second], strict=True)]
        return check_finite(self.encoder.predict(pairs, prompt=self.prompts.get(first, ""), **self.options))

    def pairs(self, name: str, first: str, second: str) -> Floats:
        """One score a text of the second role."""
        found = self.predict(first, second)
        if found.ndim > 1:
            raise EmbedlossError(
                "E501", f"the cross-encoder gives {found.shape[1]} classes a pair; this format needs one score."
            )
        return np.asarray(found, dtype=np.float64)
