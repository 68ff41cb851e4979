"""What a reranker has to beat on lists of documents: the order in which they are given, a random order, and BM25."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from embedloss.errors import EmbedlossError
from embedloss.evaluation.metrics import Floats, reranking_metrics

# Random orders of every list whose metrics are averaged; the mean over them is known to a few thousandths.
RANDOM_ORDERS = 50


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
    try:
        found["BM25"] = measured(bm25_scores([row["query"] for row in table], [list(row["docs"]) for row in table]))
    except EmbedlossError as exception:
        if exception.code != "E404":
            raise
    return found


def bm25_scores(queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[Floats]:
    """BM25 (Lucene's form, k1 1.5, b 0.75) of each query's own documents; words are counted over all distinct documents.

    Raises:
        EmbedlossError: E404 if the package bm25s is not installed.
    """
    try:
        import bm25s
    except ImportError as exception:
        raise EmbedlossError("E404", "BM25 needs the package bm25s: pip install 'embedloss[bm25]'.") from exception
    places = {text: i for i, text in enumerate(dict.fromkeys(text for texts in documents for text in texts))}
    options = {"stopwords": None, "show_progress": False, "return_ids": False}
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(places), **options), show_progress=False)
    scores = []
    for words, texts in zip(bm25s.tokenize(list(queries), **options), documents, strict=True):
        known = [word for word in words if word in index.vocab_dict]
        found = index.get_scores(known) if known else np.zeros(len(places))
        scores.append(np.asarray(found, dtype=float)[[places[text] for text in texts]])
    return scores
