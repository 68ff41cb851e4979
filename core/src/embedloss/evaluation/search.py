"""Exact search, and the metrics of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedloss.errors import EmbedlossError
from embedloss.evaluation.metrics import Floats
from embedloss.similarity import matrix

# Queries of a block, scores held at a time (queries of a block times documents of a block), and documents of a block: as many
# as stay in a CPU's cache.
BLOCK_QUERIES = 1024
BLOCK_SCORES = 2**24
BLOCK_DOCUMENTS = 8192


def exact_search(
    queries: Floats,
    corpus: Floats,
    k: int,
    similarity: str = "cosine",
    *,
    excluded: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    device: str | torch.device = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k most similar documents of every query, best first; equal scores in the order of the corpus.

    Args:
        queries: (queries, dim); may be mapped from a file.
        corpus: (documents, dim); may be mapped from a file.
        k: cut to the number of documents.
        similarity: cosine, dot, euclidean or manhattan.
        excluded: query and document of every pair that must not be found.
        device: where similarities are computed.

    Returns:
        Indices and scores, (queries, k) each; distances are negated. Where too few documents are left, the index is -1 and the
        score minus infinity. Memory: a block of queries times a block of the corpus.
    """
    k = min(k, len(corpus))
    found = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    if k == 0:
        return found, scores
    width = queries.shape[1] if similarity == "manhattan" else 1
    columns = max(1, min(BLOCK_SCORES // (min(BLOCK_QUERIES, max(len(queries), 1)) * width), BLOCK_DOCUMENTS))
    for begin in range(0, len(queries), BLOCK_QUERIES):
        x = _on(queries[begin : begin + BLOCK_QUERIES], device)
        best = torch.zeros((len(x), 0), device=device)
        ids = torch.zeros((len(x), 0), dtype=torch.int64, device=device)
        for left in range(0, len(corpus), columns):
            block = matrix(similarity, x, _on(corpus[left : left + columns], device))
            if excluded is not None:
                rows, documents = excluded[0] - begin, excluded[1] - left
                inside = (rows >= 0) & (rows < len(x)) & (documents >= 0) & (documents < block.shape[1])
                block[torch.from_numpy(rows[inside]).to(device), torch.from_numpy(documents[inside]).to(device)] = -torch.inf
            values, places = _top(block, k) if best.shape[1] < k else _above(block, best[:, -1:], k)
            # Documents found before come first, and of equal scores the first is kept.
            values, at = _top(torch.cat([best, values], 1), k)
            best, ids = values, torch.cat([ids, places + left], 1).gather(1, at)
        ids[best == -torch.inf] = -1
        found[begin : begin + len(x)] = ids.cpu().numpy()
        scores[begin : begin + len(x)] = best.cpu().numpy()
    return found, scores


def _on(part: Floats, device: str | torch.device) -> Tensor:
    array = np.ascontiguousarray(part, dtype=np.float32)
    # torch shares no memory that must not be written to, such as that of a mapped file.
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def _above(values: Tensor, limit: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What may still be among the k largest of every row, and its places in order: all above the row's limit, then -inf.

    Beyond the first documents that is next to nothing, and one comparison costs far less than looking for the k largest.
    """
    rows, places = (~(values <= limit)).nonzero(as_tuple=True)  # a NaN is above every limit
    counts = torch.bincount(rows, minlength=len(values))
    most = int(counts.max())
    if most > k:
        return _top(values, k)
    slot = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    found = values.new_full((len(values), most), -torch.inf)
    at = torch.zeros((len(values), most), dtype=torch.int64, device=rows.device)
    found[rows, slot], at[rows, slot] = values[rows, places], places
    return found, at


def _top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of every row and their places, largest first; of equal values the first."""
    if values.shape[1] > k:
        lowest, top = values.topk(k, dim=1, sorted=False)
        # Which of several equal values at the cut are in `top` is arbitrary; such rows are sorted as a whole.
        crowded = (values >= lowest.amin(1, keepdim=True)).sum(1) > k
        for row in crowded.nonzero()[:, 0]:
            top[row] = values[row].sort(descending=True, stable=True).indices[:k]
        top = top.sort(dim=1).values
        values = values.gather(1, top)
        values, order = values.sort(dim=1, descending=True, stable=True)
        return values, top.gather(1, order)
    return values.sort(dim=1, descending=True, stable=True)  # type: ignore[return-value]


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


def check_cuts(ks: Sequence[int], documents: int) -> None:
    """E501 for a cut below 1, or above the number of documents, where every search would be perfect."""
    if min(ks) < 1 or max(ks) > documents:
        raise EmbedlossError("E501", f"k is {max(ks) if min(ks) > 0 else min(ks)}, but the corpus has {documents} documents.")
