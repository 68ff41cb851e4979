"""A search over a corpus against relevance judgements, and the folders in which such data comes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedloss.errors import EmbedlossError
from embedloss.evaluation.embed import Columns, VectorScorer, similarity_of, views
from embedloss.evaluation.search import check_cuts, ranking_metrics

logger = logging.getLogger(__name__)

# A few wrong ids may be accidents of filtering a corpus; more means that the files do not belong together.
MISSING_ALLOWED = 0.05

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_DOC_IDS = ("doc_id", "_id", "id", "docid", "corpus_id", "corpus-id")
_QUERY_IDS = ("query_id", "_id", "id", "qid", "query-id")
_TEXTS = ("text", "query", "contents", "document")
_GRADES = ("score", "relevance", "grade", "label")


@dataclass
class RetrievalData:
    """A test collection.

    Args:
        corpus: document id -> text.
        queries: query id -> text.
        qrels: query id -> document id -> grade; above 0 is relevant.
    """

    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


def is_collection(source: str | Path) -> bool:
    """Whether a path is a folder with a corpus and relevance judgements."""
    path = Path(source).expanduser()
    return path.is_dir() and _one(path, "corpus") is not None and bool(_splits(path))


def load_collection(source: str | Path, split: str | None = None) -> RetrievalData:
    """Read a folder of corpus, queries and qrels, each a file that `load_rows` reads.

    Judgements are in `qrels.jsonl`, or, where there are several splits, in `test_qrels.jsonl` or `qrels/test.tsv` (as in BEIR);
    queries in `queries.jsonl` or `test_queries.jsonl`. A document's title and text are joined by a space.

    Args:
        source: the folder.
        split: such as "test"; needed where there are several.

    Raises:
        EmbedlossError: E103 if a file is missing or cannot be read, E102 if a column is missing, E104 for a null or a repeated
            id, E501 for a split that is not there.
    """
    path = Path(source).expanduser()
    corpus_file, splits = _one(path, "corpus"), _splits(path)
    if corpus_file is None or not splits:
        raise EmbedlossError("E103", f"folder '{source}' needs the files corpus, queries and qrels (.jsonl, .tsv, ...).")
    if split is None and len(splits) > 1:
        raise EmbedlossError("E501", f"'{source}' has the splits {', '.join(sorted(splits))}; type --split NAME.")
    name = split if split is not None else next(iter(splits))
    if name not in splits:
        known = ", ".join(sorted(s or "(unnamed)" for s in splits))
        raise EmbedlossError("E501", f"'{source}' has no split '{name}'; it has {known}.")
    query_file = _one(path, f"{name}_queries") or _one(path, "queries")
    if query_file is None:
        raise EmbedlossError("E103", f"folder '{source}' has corpus and qrels, but no queries.")
    qrels: dict[str, dict[str, int]] = {}
    for row, (query, doc, grade) in enumerate(_columns(splits[name], _QUERY_IDS, _DOC_IDS, _GRADES), start=1):
        try:
            qrels.setdefault(str(query), {})[str(doc)] = 1 if grade is None else int(grade)
        except ValueError as exception:
            raise EmbedlossError("E104", f"'{splits[name]}' row {row}: the grade {grade!r} is no whole number.") from exception
    return RetrievalData(_texts(corpus_file, _DOC_IDS), _texts(query_file, _QUERY_IDS), qrels)


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
    dims: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    precisions: Sequence[str] = ("float32",),
    chunk_tokens: int | None = None,
) -> dict[str, float]:
    """Search a corpus exactly and compare with relevance judgements.

    Args:
        encoder: anything with `encode(texts, prompt=...)`, or a baseline such as `BM25()`.
        corpus: document id -> text.
        queries: query id -> text.
        qrels: query id -> document id -> grade, or the ids of the relevant documents.
        ks: cuts of nDCG, MRR and Recall; None is 10.
        query_prompt: put before every query.
        document_prompt: put before every document.
        similarity: instead of the encoder's own.
        truncate_dim: keep the first components only.
        dims, layers, precisions: as in `evaluate`.
        chunk_tokens: tokens of a chunk of `encode`.

    Returns:
        ndcg@k, mrr@k, recall@k, map@100, the numbers of queries and documents, and how many queries and judgements were left
        out, where some were: queries without a relevant document, judgements that name what is not there.

    Raises:
        EmbedlossError: E501 if over 5 % of the judgements name missing documents or queries, if no query is left, or if a
            cut is larger than the corpus.
    """
    if ks is not None:
        check_cuts(ks, len(corpus))
    places = {doc: i for i, doc in enumerate(corpus)}
    judged = {q: dict(docs) if isinstance(docs, Mapping) else dict.fromkeys(docs, 1) for q, docs in qrels.items()}
    total = sum(map(len, judged.values()))
    missing = [d for docs in judged.values() for d in docs if d not in places]
    strangers = {q for q in judged if q not in queries}
    lost = sum(q in strangers or d not in places for q, docs in judged.items() for d in docs)
    if lost > MISSING_ALLOWED * total:
        examples = ", ".join(repr(i) for i in (missing or sorted(strangers))[:3])
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
    wanted = views(encoder, dims, layers, precisions)
    columns = Columns.of_texts({"query": [queries[q] for q in kept], "document": list(corpus.values())})
    prompts = {"query": query_prompt, "document": document_prompt}
    options = {"chunk_tokens": chunk_tokens} if chunk_tokens else {}
    scorer: Any
    if getattr(encoder, "kind", "") == "bm25":
        from embedloss.evaluation.lexical import LexicalScorer

        scorer = LexicalScorer(encoder, columns, prompts, options)
    else:
        scorer = VectorScorer(encoder, columns, prompts, options, layers or ())
    name = similarity_of(encoder, similarity)
    found: dict[str, float] = {}
    for view in wanted:
        seen = scorer.view(view, truncate_dim) if isinstance(scorer, VectorScorer) else scorer
        ranked = seen.search(name, "query", "document", max(100, *(ks or (10,))))
        metrics = ranking_metrics(ranked, list(kept.values()), ks or (10,))
        found |= {f"{view.name}/{key}" if view.name else key: value for key, value in metrics.items()}
    counts = {"queries": len(kept), "documents": len(corpus), "queries_excluded": excluded, "judgements_excluded": lost}
    return found | {key: float(n) for key, n in counts.items() if n}


def _one(folder: Path, stem: str) -> Path | None:
    return next((file for suffix in _SUFFIXES if (file := folder / f"{stem}{suffix}").is_file()), None)


def _splits(folder: Path) -> dict[str, Path]:
    """Split -> file of its judgements; the name is empty for a file called qrels."""
    if (only := _one(folder, "qrels")) is not None:
        return {"": only}
    found = {file.stem: file for file in sorted((folder / "qrels").glob("*")) if file.suffix in _SUFFIXES}
    named = (file for file in sorted(folder.glob("*_qrels.*")) if file.suffix in _SUFFIXES)
    return {**found, **{file.stem.removesuffix("_qrels"): file for file in named}}


def _columns(file: Path, *names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of columns by the first of their names that is there; only the last may be missing, and is None then."""
    from embedloss.chunks import Chunks

    chunks = Chunks(file)
    known = chunks.schema.names
    chosen = [next((name for name in options if name in known), None) for options in names]
    for options, name in zip(names[:-1], chosen, strict=False):
        if name is None:
            raise EmbedlossError("E102", f"'{file}' has none of the columns {', '.join(options)}; it has {', '.join(known)}.")
    for table in chunks:
        values = [table[name].to_pylist() if name else [None] * table.num_rows for name in chosen]
        yield from zip(*values, strict=True)


def _texts(file: Path, ids: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for row, (key, text, title) in enumerate(_columns(file, ids, _TEXTS, ("title",)), start=1):
        if key is None or text is None or str(key) in found:
            what = "has no id" if key is None else "has no text" if text is None else f"repeats the id '{key}'"
            raise EmbedlossError("E104", f"'{file}' row {row} {what}.")
        found[str(key)] = f"{title} {text}".strip() if title else str(text)
    return found
