"""Texts alone -> training data without labels; and rewriting rows in the names of their roles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from embedloss.convert.job import Job, Numbered, Row
from embedloss.convert.rows import LABEL_KEYS, plain
from embedloss.errors import EmbedlossError
from embedloss.formats import get_format

BLOCK = 10_000  # rows held at a time


def damage(text: str, noise: float, rng: object) -> str:
    """The text without each word that a draw below `noise` deletes; one word stays at least."""
    words = text.split()
    kept = [word for word in words if rng.random() >= noise]  # type: ignore[attr-defined]
    return " ".join(kept or [rng.choice(words)])  # type: ignore[attr-defined]


def to_damaged(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
    """A text with words deleted, and the text."""
    for number, row in rows:
        if len(row["text"].split()) < 2:
            job.report.drop("a text of one word cannot lose one", number)
            continue
        yield {"damaged": damage(row["text"], job["noise"], job.rng), "original": row["text"]}


def to_twins(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
    """Every text with itself; dropout makes the difference."""
    for _, row in rows:
        yield {"anchor": row["text"], "positive": row["text"]}


def to_tension(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
    """Every text with itself (1) and with `negatives` others of the same block of 10,000 rows (0)."""
    source = iter(rows)
    while block := list(islice(source, BLOCK)):
        texts = list(dict.fromkeys(row["text"] for _, row in block))
        place = {text: i for i, text in enumerate(texts)}
        if len(texts) < 2:
            job.report.drop("there is no other text in its block", *(number for number, _ in block))
            continue
        for _, row in block:
            yield {"first": row["text"], "second": row["text"], "label": 1}
            own = place[row["text"]]
            for at in job.rng.sample(range(len(texts) - 1), min(job["negatives"], len(texts) - 1)):
                yield {"first": row["text"], "second": texts[at + (at >= own)], "label": 0}


def rewrite(name: str) -> Callable[[Iterable[Numbered], Job], Iterator[Row]]:
    """The same format under the names of its roles, without the rows that cannot be used; numbers scaled if asked."""
    fmt = get_format(name)
    scales = fmt.label in ("score", "grades", "scores")

    def function(rows: Iterable[Numbered], job: Job) -> Iterator[Row]:
        target = job["scale_labels"] if scales else None
        scale = linear(rows, target) if target else None
        for _, row in scale[0] if scale else rows:
            label = row.get("label")
            out = {role: row[role] for role in fmt.roles}
            if fmt.label:
                if scale and label is not None:
                    label = [scale[1](v) for v in label] if isinstance(label, list) else scale[1](label)
                out[LABEL_KEYS[fmt.label]] = _plain(label)
            yield out

    return function


def _plain(label: object) -> object:
    if isinstance(label, float):
        return plain(label)
    return [_plain(v) for v in label] if isinstance(label, list) else label


class Again:
    """Rows that can be read twice: once for the range of their labels."""

    def __init__(self, read: Callable[[], Iterator[Numbered]]) -> None:
        self.read = read

    def __iter__(self) -> Iterator[Numbered]:
        return self.read()


def linear(rows: Iterable[Numbered], target: tuple[float, float]) -> tuple[Iterable[Numbered], Callable[[float], float]]:
    """The rows, and the linear function that takes their labels' range to the target's."""
    if not isinstance(rows, Again):
        rows = list(rows)
    low, high = float("inf"), float("-inf")
    for _, row in rows:
        values = row["label"] if isinstance(row["label"], list) else [row["label"]]
        low, high = min([low, *values]), max([high, *values])
    if not low < high:
        raise EmbedlossError("E107", "all labels are equal; there is no range to scale from.")
    to_low, to_high = target

    def scaled(value: float) -> float:
        found = to_low + (value - low) * (to_high - to_low) / (high - low)
        return min(max(found, min(target)), max(target))

    return rows, scaled
