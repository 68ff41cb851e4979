"""Words instead of vectors: BM25 in the place of an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embedloss.errors import EmbedlossError
from embedloss.evaluation.embed import Chosen, Columns
from embedloss.evaluation.metrics import Floats

_QUIET = {"stopwords": None, "show_progress": False, "return_ids": False}


class BM25:
    """BM25 (Lucene's form, k1 1.5, b 0.75), as an `encoder` of `evaluate` and `retrieval`.

    Raises:
        EmbedlossError: E404 if the package bm25s is not installed.
    """

    kind = "bm25"

    def __init__(self) -> None:
        _package()


class LexicalScorer:
    """Scores of pairs, and searches, by BM25; words are counted over all distinct texts of the second role.

    Args:
        encoder: a `BM25`.
        columns: the texts.
        prompts: not used: they are not part of a text's words.
        options: not used.
    """

    def __init__(self, encoder: Any, columns: Columns, prompts: Mapping[str, str], options: Mapping[str, Any]) -> None:
        self.columns = columns

    def pairs(self, name: str, first: str, second: str) -> Floats:
        """One score a text of the second role."""
        texts, rows = self.columns.texts, self.columns.rows[second]
        # Documents of all roles count, so that the scores of positives and negatives can be compared.
        known = list(dict.fromkeys(text for role in texts if role != first for text in texts[role]))
        places = {text: i for i, text in enumerate(known)}
        words, index = _index(texts[first], known)
        found = np.zeros(len(rows))
        for row in np.unique(rows):
            mine = np.nonzero(rows == row)[0]
            found[mine] = _scores(index, words[row], len(known))[[places[texts[second][i]] for i in mine]]
        return found

    def search(self, name: str, first: str, second: str, k: int, chosen: Chosen = None) -> list[list[int]]:
        """As `VectorScorer.search`; equal scores in the order of the documents."""
        queries, documents = self.columns.texts[first], self.columns.texts[second]
        if chosen is not None:
            queries, documents = [queries[i] for i in chosen[0]], [documents[i] for i in chosen[1]]
        words, index = _index(queries, documents)
        scores = (_scores(index, each, len(documents)) for each in words)
        return [np.argsort(-found, kind="stable")[:k].tolist() for found in scores]


def bm25_scores(queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[Floats]:
    """BM25 of each query's own documents; words are counted over all distinct documents.

    Raises:
        EmbedlossError: E404 if the package bm25s is not installed.
    """
    flat = [text for texts in documents for text in texts]
    columns = Columns.of_texts({"query": list(queries), "docs": flat})
    counts = [len(texts) for texts in documents]
    columns.rows["docs"] = np.repeat(np.arange(len(documents)), counts)
    scores = LexicalScorer(BM25(), columns, {}, {}).pairs("", "query", "docs")
    return list(np.split(scores, np.cumsum(counts)[:-1]))


def _package() -> Any:
    try:
        import bm25s
    except ImportError as exception:
        raise EmbedlossError("E404", "BM25 needs the package bm25s: pip install 'embedloss[bm25]'.") from exception
    return bm25s


def _index(queries: Sequence[str], documents: Sequence[str]) -> tuple[Any, Any]:
    bm25s = _package()
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(documents), **_QUIET), show_progress=False)
    return bm25s.tokenize(list(queries), **_QUIET), index


def _scores(index: Any, words: Sequence[str], documents: int) -> Floats:
    known = [word for word in words if word in index.vocab_dict]
    return np.asarray(index.get_scores(known) if known else np.zeros(documents), dtype=float)
