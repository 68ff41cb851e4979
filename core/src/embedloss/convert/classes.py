"""Texts with a class -> pairs and triplets, as many of every class."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from embedloss.convert.job import Job, Numbered, Row
from embedloss.errors import EmbedlossError

Classes = dict[str, list[str]]


def _classes(rows: Iterable[Numbered], job: Job, wanted: int) -> tuple[Classes, int]:
    """Class -> its different texts (two at least), and how many rows each class gives."""
    texts: dict[str, dict[str, list[int]]] = {}
    owners: dict[str, set[str]] = {}
    count = 0
    for number, row in rows:
        count += 1
        texts.setdefault(str(row["label"]), {}).setdefault(row["text"], []).append(number)
        owners.setdefault(row["text"], set()).add(str(row["label"]))
    found: Classes = {}
    for name, inside in texts.items():
        clear = []
        for text, numbers in inside.items():
            if len(owners[text]) > 1:
                job.report.drop("the text has several classes", *numbers)
                continue
            if len(numbers) > 1:
                job.report.drop("the text occurs before in its class", *numbers[1:])
            clear.append(text)
        if len(clear) < 2:
            job.report.drop("its class has no other text", *(inside[t][0] for t in clear))
            continue
        found[name] = clear
    if len(found) < wanted:
        raise EmbedlossError(
            "E107", f"{wanted} classes with two different texts each are needed; {len(found)} of {len(texts)} have them."
        )
    number = job["per_class"] or max(round(count / len(found)), 1)
    job.report.notes.append(f"{number:,} rows from each of {len(found):,} classes")
    return found, number


def _anchors(texts: list[str], number: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Pairs of different texts; every text is the first about as often as any other."""
    order: list[int] = []
    for _ in range(number):
        if not order:
            order = rng.sample(range(len(texts)), len(texts))
        at = order.pop()
        other = rng.randrange(len(texts) - 1)
        yield texts[at], texts[other + (other >= at)]


def _other(found: Classes, name: str, names: list[str], job: Job) -> str:
    """A text of another class; every class is as likely as any other."""
    at = names.index(name)
    other = job.rng.randrange(len(names) - 1)
    texts = found[names[other + (other >= at)]]
    return texts[job.rng.randrange(len(texts))]


def _interleaved(found: Classes, number: int, job: Job) -> Iterator[tuple[str, str, str]]:
    """Class, anchor and positive, the classes taking turns."""
    streams = {name: _anchors(texts, number, job.rng) for name, texts in found.items()}
    for _ in range(number):
        for name, stream in streams.items():
            yield name, *next(stream)


def to_pairs(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
    """Two different texts of one class."""
    found, number = _classes(rows, job, 1)
    for _, anchor, positive in _interleaved(found, number, job):
        yield {"anchor": anchor, "positive": positive}


def to_triplets(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
    """Two different texts of one class and one of another."""
    found, number = _classes(rows, job, 2)
    names = list(found)
    for name, anchor, positive in _interleaved(found, number, job):
        yield {"anchor": anchor, "positive": positive, "negative": _other(found, name, names, job)}


def to_binary(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
    """In turn two texts of one class (1) and two of different classes (0)."""
    found, number = _classes(rows, job, 2)
    names = list(found)
    for i, (name, anchor, positive) in enumerate(_interleaved(found, number, job)):
        same = (i // len(names) + i % len(names)) % 2 == 0  # in turn within every class
        second = positive if same else _other(found, name, names, job)
        yield {"first": anchor, "second": second, "label": int(same)}
