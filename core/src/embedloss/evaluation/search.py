"""Exact search, and the metrics of a search."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedloss.errors import EmbedlossError
from embedloss.evaluation.embed import check_finite, similarity_of
from embedloss.evaluation.metrics import Floats, unit

logger = logging.getLogger(__name__)

# Scores held at a time: queries of a block times documents.
BLOCK_SCORES = 2**24
# A few wrong ids may be accidents of filtering a corpus; more means that the files do not belong together.
MISSING_ALLOWED = 0.05


def exact_search(
    queries: Floats, corpus: Floats, k: int, similarity: str = "cosine"
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k most similar documents of every query, best first; equal scores in the order of the corpus.

    Args:
        queries: (queries, dim).
        corpus: (documents, dim).
        k: cut to the number of documents.
        similarity: cosine, dot, euclidean or manhattan.

    Returns:
        Indices and scores, (queries, k) each; distances are negated. Memory: a block of queries times the corpus.
    """
    k = min(k, len(corpus))
    x, y = np.asarray(queries, dtype=np.float32), np.asarray(corpus, dtype=np.float32)
    if similarity == "cosine":
        x, y = unit(x), unit(y)
    found = np.zeros((len(x), k), dtype=np.int64)
    scores = np.zeros((len(x), k), dtype=np.float32)
    if k == 0:
        return found, scores
    step = max(1, BLOCK_SCORES // (len(y) * (1 if similarity != "manhattan" else x.shape[1])))
    squares = (y**2).sum(1)
    for begin in range(0, len(x), step):
        block = _scores(similarity, x[begin : begin + step], y, squares)
        top = np.argpartition(-block, k - 1, axis=1)[:, :k] if k < len(y) else np.tile(np.arange(len(y)), (len(block), 1))
        lowest = np.take_along_axis(block, top, 1).min(1)
        # Which of several equal documents at the cut are in `top` is arbitrary; such rows are sorted as a whole.
        for row in np.nonzero((block >= lowest[:, None]).sum(1) > k)[0]:
            top[row] = np.argsort(-block[row], kind="stable")[:k]
        top = np.sort(top, axis=1)
        values = np.take_along_axis(block, top, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        found[begin : begin + step] = np.take_along_axis(top, order, 1)
        scores[begin : begin + step] = np.take_along_axis(values, order, 1)
    return found, scores


def _scores(similarity: str, x: Floats, y: Floats, squares: Floats) -> Floats:
    if similarity in ("cosine", "dot"):
        return np.asarray(x @ y.T)
    if similarity == "euclidean":
        return np.asarray(-np.sqrt(np.maximum((x**2).sum(1)[:, None] - 2 * (x @ y.T) + squares[None], 0)))
    return np.asarray(-np.abs(x[:, None] - y[None]).sum(-1))


def ranking_metrics(
    ranked: Sequence[Sequence[int]], relevant: Sequence[Mapping[int, int]], ks: Sequence[int] = (10,), map_k: int = 100
) -> dict[str, float]:
    """nDCG@k, MRR@k, Recall@k and MAP@`map_k` by ir-measures, means over the queries.

    Args:
        ranked: documents of each query, best first.
        relevant: document -> grade of each query; a grade above 0 is relevant, and the gain of nDCG is linear in it.
        ks: cuts.
        map_k: cut of MAP.
    """
    import ir_measures
    from ir_measures import AP, RR, R, nDCG

    names = {AP @ map_k: f"map@{map_k}"}
    for k in ks:
        names |= {nDCG @ k: f"ndcg@{k}", RR @ k: f"mrr@{k}", R @ k: f"recall@{k}"}
    # Ranks instead of scores: how equal scores are ordered is then decided here and not by the library.
    run = {str(q): {str(d): -float(rank) for rank, d in enumerate(docs)} for q, docs in enumerate(ranked)}
    gold = {str(q): {str(d): int(grade) for d, grade in docs.items()} for q, docs in enumerate(relevant)}
    values = ir_measures.calc_aggregate(list(names), gold, run)
    order = [f"{name}@{k}" for k in ks for name in ("ndcg", "mrr", "recall")] + [f"map@{map_k}"]
    found = {name: float(values[measure]) for measure, name in names.items()}
    return {name: found[name] for name in order}


def retrieval(
    encoder: Any,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int] | Iterable[str]],
    *,
    ks: Sequence[int] | None = None,
    query_prompt: str = "",
    document_prompt: str = "",
    similarity: str | None = None,
    truncate_dim: int | None = None,
    chunk_tokens: int | None = None,
) -> dict[str, float]:
    """Search a corpus exactly and compare with relevance judgements.

    Args:
        encoder: anything with `encode(texts, prompt=...)`.
        corpus: document id -> text.
        queries: query id -> text.
        qrels: query id -> document id -> grade, or the ids of the relevant documents.
        ks: cuts of nDCG, MRR and Recall; None is 10.
        query_prompt: put before every query.
        document_prompt: put before every document.
        similarity: instead of the encoder's own.
        truncate_dim: keep the first components only.
        chunk_tokens: tokens of a chunk of `encode`.

    Returns:
        ndcg@k, mrr@k, recall@k, map@100, the numbers of queries and documents, and how many queries and judgements were left
        out, where some were: queries without a relevant document, judgements that name what is not there.

    Raises:
        EmbedlossError: E501 if over 5 % of the judgements name missing documents or queries, if no query is left, or if a
            cut is larger than the corpus.
    """
    if ks is not None and max(ks) > len(corpus):
        raise EmbedlossError("E501", f"k is {max(ks)}, but the corpus has {len(corpus)} documents.")
    places = {doc: i for i, doc in enumerate(corpus)}
    judged = {q: dict(docs) if isinstance(docs, Mapping) else dict.fromkeys(docs, 1) for q, docs in qrels.items()}
    total = sum(map(len, judged.values()))
    missing = [d for docs in judged.values() for d in docs if d not in places]
    strangers = [q for q in judged if q not in queries]
    lost = sum(q in strangers or d not in places for q, docs in judged.items() for d in docs)
    if lost > MISSING_ALLOWED * total:
        examples = ", ".join(repr(i) for i in (missing or strangers)[:3])
        raise EmbedlossError(
            "E501",
            f"{lost} of {total} relevance judgements name documents or queries that are not there, such as {examples}. "
            "Check that corpus, queries and judgements belong together.",
        )
    kept = {q: {places[d]: g for d, g in judged.get(q, {}).items() if d in places} for q in queries}
    kept = {q: docs for q, docs in kept.items() if any(grade > 0 for grade in docs.values())}
    excluded = len(queries) - len(kept)
    if not kept:
        raise EmbedlossError("E501", "no query has a relevant document in the corpus.")
    if lost or excluded:
        logger.warning(
            "%d judgements of missing documents and %d queries without a relevant document are left out", lost, excluded
        )
    options = {"chunk_tokens": chunk_tokens} if chunk_tokens else {}
    texts = [queries[q] for q in kept]
    x = check_finite(encoder.encode(texts, prompt=query_prompt, **options))[:, :truncate_dim]
    y = check_finite(encoder.encode(list(corpus.values()), prompt=document_prompt, **options))[:, :truncate_dim]
    depth = max(100, *(ks or (10,)))
    ranked, _ = exact_search(x, y, depth, similarity_of(encoder, similarity))
    found = ranking_metrics(ranked.tolist(), list(kept.values()), ks or (10,))
    counts = {"queries": len(kept), "documents": len(corpus), "queries_excluded": excluded, "judgements_excluded": lost}
    return found | {name: float(n) for name, n in counts.items() if n}
