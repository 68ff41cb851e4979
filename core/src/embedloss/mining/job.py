"""`mine`: encode, search, perhaps score again, choose, in blocks that survive an interruption."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedloss.convert.job import Row
from embedloss.encoders import Encoder, load_encoder
from embedloss.errors import EmbedlossError
from embedloss.evaluation.embed import check_finite, similarity_of
from embedloss.evaluation.metrics import pairwise_similarity
from embedloss.evaluation.search import BLOCK_QUERIES, exact_search
from embedloss.mining.pairs import Pairs, gather, read_corpus, read_judgements, read_pairs
from embedloss.mining.report import MiningReport
from embedloss.mining.select import choose, rows_of
from embedloss.mining.settings import MiningSettings
from embedloss.mining.store import Progress, filled, key, silent
from embedloss.training.guides import fingerprint

ENCODED = 4096  # texts encoded between two writes to disk
SCORED = 64  # queries whose candidates are scored between two writes
FOUND = np.dtype([("document", np.int32), ("score", np.float32)])


@dataclass
class Mined:
    """What `mine` found.

    Args:
        rows: in the output format, under the names of its roles; texts are shared, not copied.
        report: counts, drops, and scores.
    """

    rows: list[Row]
    report: MiningReport


def mine(
    data: Any,
    model: str | Encoder,
    *,
    corpus: Any = None,
    queries: str | None = None,
    qrels: str | None = None,
    cross_encoder: str | Any = None,
    mapping: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    query_prompt: str | None = None,
    corpus_prompt: str | None = None,
    work: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Mined:
    """Hard negatives for pairs: documents that a model ranks high for a query and that are not known to answer it.

    Args:
        data: pairs (anchor, positive): a file, a `datasets.Dataset`, or rows as mappings; None with `qrels`. Columns called
            query_id and doc_id (or positive_id) tell what belongs together, beside the texts.
        model: a bi-encoder, or its folder or hub id; embeddings are compared by its own similarity.
        corpus: texts to search: a list, id -> text, or a file (doc_id, text, perhaps title); the positives by default.
        queries: file of queries (query_id, text), with `qrels`.
        qrels: file of judgements in place of `data`; with `corpus` and `queries`. Every grade above 0 makes a positive.
        cross_encoder: scores the candidates and positives again; filters and order then go by its scores.
        mapping: role -> column.
        drop: columns to leave out.
        query_prompt: put before queries; by default the model's own prompt "query", if it has one.
        corpus_prompt: put before documents; by default the model's own prompt "document", if it has one.
        work: folder that keeps embeddings and finished blocks, for going on after an interruption and for other settings on the
            same texts; by default a temporary one.
        progress: told what is done.
        settings: of `MiningSettings`.

    Returns:
        Rows in the output format. Queries for which no negative is left are counted, and give none.

    Raises:
        EmbedlossError: E108 for settings out of range or where nothing can be mined, E302 for a model of the wrong kind, E404
            where faiss is asked for and missing, else as `data.load_rows` and `binding.bind`.

    Memory grows with the texts and with the candidates of each query, not with queries times documents.
    """
    began = time.perf_counter()
    chosen = MiningSettings(**settings)
    faiss = _faiss() if chosen.index == "faiss" else None
    report = MiningReport("pairs", chosen.output_format, parameters=chosen.to_json())
    pairs = _read(data, corpus, queries, qrels, mapping, drop, report)
    encoder, scorer = _models(model, cross_encoder)
    prompts = encoder.prompts
    query_prompt = prompts.get("query", "") if query_prompt is None else query_prompt
    corpus_prompt = prompts.get("document", "") if corpus_prompt is None else corpus_prompt
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(work) if work is not None else Path(temporary)
        found = _candidates(pairs, encoder, scorer, (query_prompt, corpus_prompt), chosen, faiss, folder, progress)
        rows = _rows(pairs, *found, chosen, report)
    report.seconds = time.perf_counter() - began
    return Mined(rows, report)


def _read(
    data: Any,
    corpus: Any,
    queries: str | None,
    qrels: str | None,
    mapping: Mapping[str, str] | None,
    drop: Sequence[str],
    report: MiningReport,
) -> Pairs:
    if (data is None) == (qrels is None):
        raise EmbedlossError("E108", "give one source: DATA, or --qrels with --corpus and --queries.")
    if (qrels is None) != (queries is None) or (qrels is not None and corpus is None):
        raise EmbedlossError("E108", "--qrels, --queries and --corpus go together: judgements name both by their ids.")
    texts = read_corpus(corpus, report)
    if qrels is not None:
        report.source = "qrels"
        assert isinstance(texts, Mapping)
        assert queries is not None
        rows = read_judgements(qrels, texts, queries, report)
    else:
        rows = read_pairs(data, report, mapping, drop)
    pairs = gather(rows, texts)
    if not len(pairs.query):
        reasons = "; ".join(f"{reason}: {d.count:,}" for reason, d in report.dropped.items())
        raise EmbedlossError("E108", f"no pair is left of {report.rows_in:,} rows. {reasons or 'There are none'}.")
    report.queries, report.documents = len(pairs.queries), pairs.searched
    report.pairs, report.known = len(pairs.query), len(pairs.known)
    if pairs.searched < 2:
        raise EmbedlossError("E108", f"there is {pairs.searched} document to search; negatives need at least two.")
    return pairs


def _models(model: str | Encoder, cross_encoder: Any) -> tuple[Encoder, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = load_encoder(model, device=device) if isinstance(model, str) else model
    if encoder.kind == "cross-encoder":
        raise EmbedlossError(
            "E302", "the model is a cross-encoder, which gives no embeddings to search by. Give it as --cross-encoder."
        )
    scorer = load_encoder(cross_encoder, device=device) if isinstance(cross_encoder, str) else cross_encoder
    if scorer is not None and (scorer.kind != "cross-encoder" or scorer.num_labels != 1):
        what = f"has {scorer.num_labels} outputs" if scorer.kind == "cross-encoder" else "is a bi-encoder"
        raise EmbedlossError("E302", f"--cross-encoder {what}; a cross-encoder with one score a pair is needed.")
    return encoder, scorer


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as exception:
        raise EmbedlossError(
            "E404", "--index faiss needs faiss: pip install faiss-cpu. The index 'exact' needs none."
        ) from exception
    return faiss


# -- stages -----------------------------------------------------------------------------------------------------------
def _candidates(
    pairs: Pairs,
    encoder: Encoder,
    scorer: Any,
    prompts: tuple[str, str],
    settings: MiningSettings,
    faiss: Any,
    folder: Path,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """(queries, ranks) candidates of every query, best first, and (pairs,) scores of the positives."""

    def embedded(texts: list[str], prompt: str, stage: str) -> tuple[np.ndarray, str]:
        name = key(fingerprint(encoder, prompt), texts)
        return filled(
            folder,
            f"embeddings-{name}",
            (len(texts), encoder.dimension),
            np.float32,
            lambda begin, end: check_finite(encoder.encode(texts[begin:end], prompt=prompt)),
            block=ENCODED,
            stage=stage,
            progress=progress,
        ), name

    x, x_name = embedded(pairs.queries, prompts[0], "encode queries")
    y, y_name = embedded(pairs.documents, prompts[1], "encode documents")
    similarity = similarity_of(encoder)
    corpus = y[: pairs.searched]
    depth = min(settings.depth, pairs.searched)
    index = _index(faiss, corpus, similarity) if faiss is not None else None

    def search(begin: int, end: int) -> np.ndarray:
        known = pairs.known[pairs.starts[begin] : pairs.starts[end]]
        rows = np.repeat(np.arange(end - begin), np.diff(pairs.starts[begin : end + 1]))
        if index is None:
            ids, scores = exact_search(x[begin:end], corpus, depth, similarity, excluded=(rows, known), device=encoder.device)
        else:
            ids, scores = _search_index(index, faiss, x[begin:end], depth, similarity, (rows, known))
        block = np.empty(ids.shape, FOUND)
        block["document"], block["score"] = ids, scores
        return block

    name = key(x_name, y_name, similarity, depth, settings.index, pairs.searched, pairs.starts, pairs.known)
    nearest = filled(
        folder,
        f"nearest-{name}",
        (len(pairs.queries), depth),
        FOUND,
        search,
        block=BLOCK_QUERIES,
        stage="search",
        progress=progress,
    )[:, settings.range_min :]
    if scorer is None:
        positive = [
            pairwise_similarity(similarity, x[pairs.query[b : b + ENCODED]], y[pairs.positive[b : b + ENCODED]])
            for b in range(0, len(pairs.query), ENCODED)
        ]
        return nearest, np.concatenate(positive).astype(np.float32)
    return _rescored(pairs, nearest, scorer, prompts[0], key(name, settings.range_min), folder, progress)


def _rescored(
    pairs: Pairs, nearest: np.ndarray, scorer: Any, prompt: str, name: str, folder: Path, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """The same by the scores of a cross-encoder."""
    name = key(name, fingerprint(scorer, prompt), pairs.query, pairs.positive)

    def predict(queries: Sequence[int], documents: Sequence[int]) -> np.ndarray:
        texts = [(pairs.queries[q], pairs.documents[d]) for q, d in zip(queries, documents, strict=True)]
        return np.asarray(check_finite(scorer.predict(texts, prompt=prompt)), dtype=np.float32)

    def candidates(begin: int, end: int) -> np.ndarray:
        block = np.array(nearest[begin:end])
        rows, ranks = np.nonzero(block["document"] >= 0)
        block["score"][rows, ranks] = predict((rows + begin).tolist(), block["document"][rows, ranks].tolist())
        order = np.argsort(-block["score"], axis=1, kind="stable")  # what was not found has minus infinity
        return np.take_along_axis(block, order, 1)

    def positives(begin: int, end: int) -> np.ndarray:
        return predict(pairs.query[begin:end].tolist(), pairs.positive[begin:end].tolist())

    scored = filled(
        folder, f"rescored-{name}", nearest.shape, FOUND, candidates, block=SCORED, stage="score candidates", progress=progress
    )
    positive = filled(
        folder,
        f"positive-{name}",
        (len(pairs.query),),
        np.float32,
        positives,
        block=SCORED * 16,
        stage="score positives",
        progress=progress,
    )
    return scored, positive


def _rows(
    pairs: Pairs, candidates: np.ndarray, positive: np.ndarray, settings: MiningSettings, report: MiningReport
) -> list[Row]:
    """Negatives of every query, as rows."""
    rng = random.Random(settings.seed)
    order = np.argsort(pairs.query, kind="stable")
    bounds = np.searchsorted(pairs.query[order], np.arange(len(pairs.queries) + 1))
    rows: list[Row] = []
    for query, text in enumerate(pairs.queries):
        own = order[bounds[query] : bounds[query + 1]]
        scores = positive[own]
        found = choose(
            candidates[query]["document"].astype(np.int64),
            candidates[query]["score"],
            float(scores.min()),
            settings,
            rng,
            report,
        )
        report.without += not found
        report.fewer += 0 < len(found) < settings.num_negatives
        if not found:
            continue
        positives = [(pairs.documents[d], float(s)) for d, s in zip(pairs.positive[own], scores, strict=True)]
        for _, score in positives:
            report.add(score, [s for _, s in found])
        rows += rows_of(settings.output_format, text, positives, [(pairs.documents[d], s) for d, s in found])
    report.rows_out = len(rows)
    if not rows:
        over = ", ".join(f"{name} took out {count:,}" for name, count in report.passed_over.items() if count)
        raise EmbedlossError(
            "E108", f"no query has a negative left{': ' + over if over else ''}. Widen the filters or --range-max."
        )
    return rows


# -- faiss ------------------------------------------------------------------------------------------------------------
def _index(faiss: Any, corpus: np.ndarray, similarity: str) -> Any:
    metrics = {
        "cosine": faiss.METRIC_INNER_PRODUCT,
        "dot": faiss.METRIC_INNER_PRODUCT,
        "euclidean": faiss.METRIC_L2,
        "manhattan": faiss.METRIC_L1,
    }
    index = faiss.IndexFlat(corpus.shape[1], metrics[similarity])
    for begin in range(0, len(corpus), ENCODED):
        index.add(_normal(faiss, corpus[begin : begin + ENCODED], similarity))
    return index


def _normal(faiss: Any, part: np.ndarray, similarity: str) -> np.ndarray:
    copy = np.array(part, dtype=np.float32, order="C")
    if similarity == "cosine":
        faiss.normalize_L2(copy)
    return copy


def _search_index(
    index: Any, faiss: Any, queries: np.ndarray, depth: int, similarity: str, excluded: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """As `exact_search`. An index cannot leave out documents, so that as many more are fetched as any query has known."""
    rows, known = excluded
    more = int(np.bincount(rows, minlength=1).max()) if len(rows) else 0
    fetched = min(depth + more, index.ntotal)
    scores, ids = index.search(_normal(faiss, queries, similarity), fetched)
    if similarity == "euclidean":
        scores = -np.sqrt(np.maximum(scores, 0))
    elif similarity == "manhattan":
        scores = -scores
    taken = np.isin(ids + np.arange(len(queries))[:, None] * index.ntotal, rows * index.ntotal + known)
    order = np.argsort(taken, axis=1, kind="stable")[:, :depth]
    ids, scores = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
    gone = np.take_along_axis(taken, order, 1)
    return np.where(gone, -1, ids), np.where(gone, -np.inf, scores).astype(np.float32)
