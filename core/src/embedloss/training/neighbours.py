"""What a model finds nearest to a few queries, before and after training: evidence that a reader can judge without numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from embedloss.formats import DataFormat

QUERIES, TEXTS, SHOWN = 8, 200, 3


def neighbours(encoder: Any, data: Any, fmt: DataFormat, prompts: Mapping[str, str], seed: int = 0) -> list[dict[str, Any]]:
    """The nearest texts of some queries.

    Args:
        encoder: bi-encoder or cross-encoder.
        data: a bound data set.
        fmt: its format; the first role is the query, and its row's positives, graded or equal-class texts belong to it.
        prompts: role -> prompt.
        seed: draws the rows.

    Returns:
        One {"query", "own", "found"} a query: own texts, and (text, score) of the best ones.
    """
    rng = random.Random(seed)
    rows = [data[i] for i in rng.sample(range(len(data)), min(len(data), TEXTS))]
    role = fmt.roles[0]
    single = len(fmt.roles) == 1
    others = [role] if single else list(fmt.roles[1:])
    texts = list(dict.fromkeys(text for row in rows for other in others for text in _texts(row[other])))[:TEXTS]
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        query = _texts(row[role])[0]
        if len(found) < QUERIES or query in found:
            own = _own(row, fmt, rows)
            found.setdefault(query, {"query": query, "own": []})["own"] += [t for t in own if t != query]
    queries = list(found)
    if encoder.kind == "cross-encoder":
        if encoder.num_labels != 1 or single:
            return []
        own = [text for each in found.values() for text in each["own"]]
        texts = list(dict.fromkeys([*own, *texts]))[: 4 * QUERIES]
        pairs = [(query, text) for query in queries for text in texts]
        scores = encoder.predict(pairs, prompt=prompts.get(role, "")).reshape(len(queries), len(texts))
    else:
        x = encoder.encode(queries, prompt=prompts.get(role, ""), normalize=True)
        y = encoder.encode(texts, prompt=prompts.get(others[0], ""), normalize=True)
        scores = x @ y.T
    for query, row in zip(queries, np.where(np.isfinite(scores), scores, -np.inf), strict=True):
        order = [int(i) for i in np.argsort(-row, kind="stable") if texts[i] != query][:SHOWN]
        found[query]["found"] = [[texts[i], round(float(row[i]), 4)] for i in order]
    return list(found.values())


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(text) for text in value]


def _own(row: Mapping[str, Any], fmt: DataFormat, rows: list[Any]) -> list[str]:
    """The texts that belong to a row's query."""
    if "positive" in fmt.roles:
        return _texts(row["positive"])
    if "docs" in fmt.roles:
        return [text for text, grade in zip(row["docs"], row["label"], strict=True) if grade > 0]
    if fmt.label == "class" and len(fmt.roles) == 1:
        return [_texts(other[fmt.roles[0]])[0] for other in rows if other["label"] == row["label"]]
    return _texts(row[fmt.roles[1]]) if len(fmt.roles) == 2 and fmt.label != "binary" else []
