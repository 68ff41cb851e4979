"""Scores and vectors of the texts of a data set, from either kind of encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedloss.errors import EmbedlossError
from embedloss.evaluation.metrics import Floats, pairwise_similarity, unit
from embedloss.similarity import similarity_name

Chosen = tuple[Sequence[int], Sequence[int]] | None
PRECISIONS = ("float32", "int8", "binary")


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

    @classmethod
    def of_texts(cls, texts: Mapping[str, list[str]]) -> Columns:
        """Lists of texts by role that share no rows."""
        columns = cls((), ())
        columns.texts = dict(texts)
        columns.rows = {role: np.arange(len(values)) for role, values in texts.items()}
        return columns


@dataclass(frozen=True)
class View:
    """What part of the embeddings is looked at.

    Args:
        layer: number of the transformer's layer, 0 for its word embeddings; None for the model's own output.
        dim: the first components only.
        precision: one of `PRECISIONS`.
    """

    layer: int | None = None
    dim: int | None = None
    precision: str = "float32"

    @property
    def name(self) -> str:
        """Such as "layer2/64/int8"; empty for the embeddings as they are."""
        parts = (
            None if self.layer is None else f"layer{self.layer}",
            None if self.dim is None else str(self.dim),
            None if self.precision == "float32" else self.precision,
        )
        return "/".join(part for part in parts if part)


def views(
    encoder: Any, dims: Sequence[int] | None = None, layers: Sequence[int] | None = None, precisions: Sequence[str] = ()
) -> list[View]:
    """The whole embeddings, and every combination of the sizes, layers and precisions given.

    Raises:
        EmbedlossError: E501 for a size, layer or precision that the encoder does not have.
    """
    wanted = bool(dims or layers or [p for p in precisions if p != "float32"])
    if wanted and not hasattr(encoder, "encode"):
        raise EmbedlossError("E501", "a cross-encoder gives no embeddings: sizes, layers and precisions have no meaning.")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise EmbedlossError("E501", f"precision '{precision}' is unknown; there are {', '.join(PRECISIONS)}.")
    width, depth = getattr(encoder, "dimension", None), getattr(encoder, "n_layers", 0)
    for dim in dims or ():
        if dim < 1 or (width is not None and dim > width):
            raise EmbedlossError("E501", f"dimension {dim} is not there: the embeddings have {width or 'at least 1'}.")
    for layer in layers or ():
        if not 0 <= layer <= depth or not hasattr(encoder, "encode_layers"):
            raise EmbedlossError("E501", f"layer {layer} is not there: the encoder has {depth} layers.")
    found = [
        View(layer, dim, precision)
        for layer in (None, *(layers or ()))
        for dim in (None, *(dims or ()))
        for precision in ("float32", *precisions)
    ]
    return list(dict.fromkeys(found))


def quantised(vectors: Mapping[str, Floats], precision: str) -> dict[str, Floats]:
    """Embeddings as an index would keep them, as float32 numbers.

    int8: unit embeddings, each component's range over all texts cut into 255 steps, numbers from -128 to 127. binary: 1 where
    a component is above 0, else 0.
    """
    if precision == "float32":
        return dict(vectors)
    if precision == "binary":
        return {role: (x > 0).astype(np.float32) for role, x in vectors.items()}
    units = {role: unit(x) for role, x in vectors.items()}
    low = np.min([x.min(0) for x in units.values() if len(x)], axis=0)
    high = np.max([x.max(0) for x in units.values() if len(x)], axis=0)
    steps = np.where(high > low, (high - low) / 255, 1)
    return {role: (np.clip(np.floor((x - low) / steps), 0, 255) - 128).astype(np.float32) for role, x in units.items()}


class VectorScorer:
    """Scores of pairs by the similarity of their embeddings. Every text is encoded once per prompt.

    Args:
        encoder: anything with `encode(texts, prompt=...)`.
        columns: the texts.
        prompts: role -> prompt.
        options: further arguments of `encode`.
        layers: of the encoder, beside its own output.
    """

    def __init__(
        self,
        encoder: Any,
        columns: Columns,
        prompts: Mapping[str, str],
        options: Mapping[str, Any],
        layers: Sequence[int] = (),
    ) -> None:
        self.columns = columns
        self.by_layer: dict[int | None, dict[str, Floats]] = {layer: {} for layer in (None, *layers)}
        by_prompt: dict[str, list[str]] = {}
        for role in columns.texts:
            by_prompt.setdefault(prompts.get(role, ""), []).append(role)
        for prompt, roles in by_prompt.items():
            unique = {text: i for i, text in enumerate(dict.fromkeys(t for role in roles for t in columns.texts[role]))}
            found: dict[int | None, Floats]
            if layers:
                found = dict(encoder.encode_layers(list(unique), (None, *layers), prompt=prompt, **options))
            else:
                found = {None: encoder.encode(list(unique), prompt=prompt, **options)}
            for layer, values in found.items():
                check_finite(values)
                for role in roles:
                    self.by_layer[layer][role] = values[[unique[text] for text in columns.texts[role]]]
        self.vectors = self.by_layer[None]

    def view(self, view: View, truncate_dim: int | None = None) -> VectorScorer:
        """The same with a part of the embeddings; `truncate_dim` components where the view names no size."""
        other = object.__new__(VectorScorer)
        other.columns, other.by_layer = self.columns, {}
        cut = {role: x[:, : view.dim or truncate_dim] for role, x in self.by_layer[view.layer].items()}
        other.vectors = quantised(cut, view.precision)
        return other

    def pairs(self, name: str, first: str, second: str) -> Floats:
        """One score a text of the second role: its similarity with its row's text of the first role."""
        rows = self.columns.rows[second]
        return pairwise_similarity(name, self.vectors[first][rows], self.vectors[second])

    def search(self, name: str, first: str, second: str, k: int, chosen: Chosen = None) -> list[list[int]]:
        """The k best texts of the second role for each of the first, as places in what was chosen of each role (all)."""
        from embedloss.evaluation.search import exact_search

        queries, corpus = self.vectors[first], self.vectors[second]
        if chosen is not None:
            queries, corpus = queries[list(chosen[0])], corpus[list(chosen[1])]
        ranked: list[list[int]] = exact_search(queries, corpus, k, name)[0].tolist()
        return ranked


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
