"""From ranked candidates to negatives, and from negatives to rows. Pure functions; imports no torch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from embedloss.convert.job import Row
from embedloss.mining.report import MiningReport
from embedloss.mining.settings import MiningSettings, option

DIGITS = 6  # of scores that are written

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def choose(
    documents: Ints, scores: Floats, positive: float, settings: MiningSettings, rng: random.Random, report: MiningReport
) -> list[tuple[int, float]]:
    """The negatives of one query with their scores, best first.

    Args:
        documents: candidates within the ranks, best first; -1 where there are no more.
        scores: of the candidates.
        positive: the lowest score of the query's positives.
        settings: filters, number, strategy.
        rng: of the drawing.
        report: gets what each filter took out.
    """
    left = documents >= 0
    # The threshold falls for negative scores too, which a product with (1 - margin) would raise.
    limits = {
        "max_score": None if settings.max_score is None else scores <= settings.max_score,
        "min_score": None if settings.min_score is None else scores >= settings.min_score,
        "absolute_margin": None if settings.absolute_margin is None else scores <= positive - settings.absolute_margin,
        "relative_margin": (
            None if settings.relative_margin is None else scores <= positive - abs(positive) * settings.relative_margin
        ),
    }
    for name, keeps in limits.items():
        if keeps is not None:
            taken = int((left & ~keeps).sum())
            report.passed_over[option(name)] = report.passed_over.get(option(name), 0) + taken
            left &= keeps
    places = np.flatnonzero(left).tolist()
    if settings.sampling_strategy == "random":
        places = sorted(rng.sample(places, min(settings.num_negatives, len(places))))
    return [(int(documents[i]), float(scores[i])) for i in places[: settings.num_negatives]]


def rows_of(
    name: str,
    query: str,
    positives: Sequence[tuple[str, float]],
    negatives: Sequence[tuple[str, float]],
) -> Iterator[Row]:
    """What is written for one query.

    Args:
        name: output format.
        query: its text.
        positives: texts and scores.
        negatives: texts and scores, one at least.
    """
    texts = [text for text, _ in negatives]
    if name == "listwise":
        docs = [*(text for text, _ in positives), *texts]
        yield {"query": query, "docs": docs, "grades": [1] * len(positives) + [0] * len(texts)}
        return
    for positive, score in positives:
        if name == "n-tuples":
            yield {"anchor": query, "positive": positive, "negative": texts}
        elif name == "n-tuples+scores":
            scores = [round(s, DIGITS) for s in (score, *(s for _, s in negatives))]
            yield {"query": query, "positive": positive, "negative": texts, "scores": scores}
        elif name == "triplets":
            for text in texts:
                yield {"anchor": query, "positive": positive, "negative": text}
        else:
            yield {"first": query, "second": positive, "label": 1}
    if name == "pairs+binary":
        for text in texts:
            yield {"first": query, "second": text, "label": 0}
