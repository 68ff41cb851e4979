"""Labels from a teacher: scores, margins and vectors of a bi-encoder or cross-encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

from embedloss.convert.job import Job, Numbered, Row
from embedloss.errors import EmbedlossError

BLOCK = 512  # rows whose texts are with the teacher at a time
DIGITS = 6  # of what is written


class Teacher(Protocol):
    """What a teacher must offer; `load_teacher` makes one of a folder or hub id."""

    def score(self, queries: Sequence[str], documents: Sequence[str]) -> Sequence[float]:
        """One score a pair."""
        ...

    def encode(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """One vector a text."""
        ...


class EncoderTeacher:
    """An encoder as teacher: logits of a cross-encoder, the bi-encoder's own similarity otherwise."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def score(self, queries: Sequence[str], documents: Sequence[str]) -> Sequence[float]:
        """One score a pair."""
        if self.encoder.kind == "cross-encoder":
            found = self.encoder.predict(list(zip(queries, documents, strict=True)), activation="Identity")
            if found.ndim != 1:
                raise EmbedlossError("E107", "the teacher has several outputs; one score a pair is needed.")
            return [float(v) for v in found]
        import torch

        from embedloss.similarity import pairwise, similarity_name

        texts = list(dict.fromkeys([*queries, *documents]))
        place = {text: i for i, text in enumerate(texts)}
        vectors = torch.from_numpy(self.encoder.encode(texts))
        left, right = (vectors[[place[t] for t in side]] for side in (queries, documents))
        return [float(v) for v in pairwise(similarity_name(self.encoder.similarity), left, right)]

    def encode(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """One vector a text."""
        if self.encoder.kind == "cross-encoder":
            raise EmbedlossError("E107", "the teacher is a cross-encoder, which has no vectors; a bi-encoder is needed.")
        return [[float(v) for v in vector] for vector in self.encoder.encode(list(texts))]


def load_teacher(model: str) -> Teacher:
    """The encoder in a folder or of a hub id; E301 if it cannot be loaded."""
    from embedloss.encoders import load_encoder

    return EncoderTeacher(load_encoder(model))


def _blocks(rows: Iterable[Numbered]) -> Iterator[list[Row]]:
    source = iter(rows)
    while block := [row for _, row in islice(source, BLOCK)]:
        yield block


def _scored(rows: Iterable[Numbered], job: Job) -> Iterator[tuple[Row, list[str], list[float]]]:
    """Row, negatives, and the scores of positive and negatives."""
    for block in _blocks(rows):
        negatives = [[row["negative"]] if isinstance(row["negative"], str) else row["negative"] for row in block]
        documents = [text for row, others in zip(block, negatives, strict=True) for text in (row["positive"], *others)]
        queries = [row["anchor"] for row, others in zip(block, negatives, strict=True) for _ in range(1 + len(others))]
        scores = iter(job["teacher"].score(queries, documents))
        for row, others in zip(block, negatives, strict=True):
            yield row, others, [float(next(scores)) for _ in range(1 + len(others))]


def _rounded(value: float) -> float:
    return round(value, DIGITS)


def to_scores(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
    """The teacher's score of positive and negatives."""
    for row, others, scores in _scored(rows, job):
        yield {
            "query": row["anchor"],
            "positive": row["positive"],
            "negative": others,
            "scores": [_rounded(s) for s in scores],
        }


def to_margins(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
    """The teacher's score of the positive minus that of each negative."""
    for row, others, scores in _scored(rows, job):
        margins = [_rounded(scores[0] - s) for s in scores[1:]]
        yield {"query": row["anchor"], "positive": row["positive"], "negative": others, "margins": margins}


def to_margin(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
    """A row for each negative, with its margin."""
    for row, others, scores in _scored(rows, job):
        for text, score in zip(others, scores[1:], strict=True):
            margin = _rounded(scores[0] - score)
            yield {"query": row["anchor"], "positive": row["positive"], "negative": text, "margin": margin}


def to_pair_scores(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
    """Two texts and the teacher's score."""
    for block in _blocks(rows):
        scores = job["teacher"].score([r["anchor"] for r in block], [r["positive"] for r in block])
        for row, score in zip(block, scores, strict=True):
            yield {"first": row["anchor"], "second": row["positive"], "score": _rounded(float(score))}


def to_vectors(role: str) -> Callable[[Iterable[Numbered], Job], Iterator[Row]]:
    """A text and the teacher's vector; or both texts of a pair and the vector of the first, as for translations."""

    def function(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
        for block in _blocks(rows):
            vectors = job["teacher"].encode([row[role] for row in block])
            for row, vector in zip(block, vectors, strict=True):
                texts: Row = {"text": row["text"]} if role == "text" else {"texts": [row["anchor"], row["positive"]]}
                yield {**texts, "embedding": [_rounded(float(v)) for v in vector]}

    return function
