"""What a model has to beat: random vectors, BM25, a static encoder that has learnt nothing, and the order that was given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from embedloss.errors import EmbedlossError
from embedloss.evaluation.evaluators import evaluate, why_nothing
from embedloss.evaluation.lexical import BM25, bm25_scores
from embedloss.evaluation.metrics import Floats, reranking_metrics
from embedloss.evaluation.retrieval import RetrievalData, retrieval
from embedloss.formats import get_format

# Random orders of every list whose metrics are averaged; the mean over them is known to a few thousandths.
RANDOM_ORDERS = 50


class RandomEncoder:
    """A random vector a text, drawn from N(0, 1) by the text's place.

    Args:
        dimension: of the vectors.
        seed: of the draw.
    """

    kind, similarity = "bi-encoder", "cosine"

    def __init__(self, dimension: int = 64, seed: int = 0) -> None:
        self.dimension, self.seed = dimension, seed

    def encode(self, texts: Sequence[str], *, prompt: str = "", chunk_tokens: int | None = None) -> Floats:
        """(texts, dimension) float32."""
        return np.random.default_rng(self.seed).normal(size=(len(texts), self.dimension)).astype(np.float32)


def baselines(
    data: RetrievalData | Iterable[Mapping[str, Any]],
    format_name: str = "",
    *,
    ks: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """The metrics of `evaluate` or `retrieval` for encoders that have learnt nothing.

    Args:
        data: rows of a format, or a collection.
        format_name: of the rows; not read for a collection.
        ks: as in `evaluate`.
        seed: of everything random.

    Returns:
        "random", "BM25" (where the package bm25s is installed and words can be scored) and "static, untrained" (a static
        encoder whose tokenizer is learnt from these texts: a projection of their words), on lists also "given order".
        Name -> metric -> value.
    """
    from embedloss.encoders.static import new_static_encoder

    if isinstance(data, RetrievalData):
        texts = [*data.queries.values(), *data.corpus.values()]
        makers: dict[str, Any] = {"random": RandomEncoder(seed=seed), "BM25": _bm25()}
        makers["static, untrained"] = new_static_encoder(texts, seed=seed)
        return {
            name: retrieval(encoder, data.corpus, data.queries, data.qrels, ks=ks)
            for name, encoder in makers.items()
            if encoder is not None
        }
    rows, fmt = list(data), get_format(format_name)
    values = [row[role] for row in rows for role in fmt.roles]
    texts = [text for value in values for text in ([value] if isinstance(value, str) else value)]
    static = new_static_encoder(texts, seed=seed)
    if fmt.name == "listwise":
        found = list_baselines(rows, ks=ks or (10,), seed=seed)
        return {**found, "static, untrained": evaluate(static, rows, fmt, ks=ks, seed=seed)}
    makers = {"random": RandomEncoder(seed=seed)}
    if not why_nothing(fmt.name, "bm25"):
        makers["BM25"] = _bm25()
    makers["static, untrained"] = static
    return {name: evaluate(encoder, rows, fmt, ks=ks, seed=seed) for name, encoder in makers.items() if encoder is not None}


def list_baselines(
    rows: Iterable[Mapping[str, Any]], *, ks: Sequence[int] = (10,), seed: int = 0
) -> dict[str, dict[str, float]]:
    """The metrics of `evaluate` on listwise rows for orders that need no model.

    Args:
        rows: each "query", "docs" (a list) and "label" (one grade a document).
        ks: cuts of nDCG and MRR.
        seed: of the random orders.

    Returns:
        "given order", "random order" (the mean over 50), and "BM25" where the package bm25s is installed: metric -> value.
    """
    table = list(rows)
    grades = [np.asarray(row["label"], dtype=float) for row in table]
    rng = np.random.default_rng(seed)

    def measured(scores: Iterable[Floats]) -> dict[str, float]:
        lists = list(zip(scores, grades, strict=True))
        return {name: value for k in ks for name, value in reranking_metrics(lists, k).items()}

    found = {"given order": measured(-np.arange(len(g), dtype=float) for g in grades)}
    drawn = [measured(rng.permutation(len(g)).astype(float) for g in grades) for _ in range(RANDOM_ORDERS)]
    found["random order"] = {name: float(np.mean([one[name] for one in drawn])) for name in drawn[0]}
    if _bm25() is not None:
        found["BM25"] = measured(bm25_scores([row["query"] for row in table], [list(row["docs"]) for row in table]))
    return found


def _bm25() -> BM25 | None:
    try:
        return BM25()
    except EmbedlossError as exception:
        if exception.code != "E404":
            raise
        return None
