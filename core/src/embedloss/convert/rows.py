"""Rows of a file by role; what cannot be used is dropped and counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from embedloss.convert.job import ConversionReport, Numbered, Row
from embedloss.formats import LARGEST_ID

if TYPE_CHECKING:
    from embedloss.binding import Binding

NO_TEXT = "a text is missing or empty"
NO_LABEL = "the label is missing or not finite"
WRONG_LABEL = {"binary": "the label is not 0 or 1", "class": "the class id is not a whole number from 0"}
WRONG_COUNT = "not one number for each text"


def usable(text: Any) -> bool:
    """Whether it is a text with something in it."""
    return isinstance(text, str) and bool(text.strip())


def bound_rows(tables: Iterable[Any], binding: Binding, report: ConversionReport) -> Iterator[Numbered]:
    """Rows under the names of their roles, "label" for the label.

    Texts of a list that are missing or empty leave the list together with their grade or score; a row that lacks a text or a
    label is dropped. A list where a row has one positive makes a row of each.
    """
    number = 0
    several = binding.columns.get("positive", ("",))[0]
    for table in tables:
        for raw in table.to_pylist():
            number += 1
            report.rows_in = number
            for one in _each(raw, several):
                row = _bound(one, binding)
                if isinstance(row, str):
                    report.drop(row, number)
                else:
                    yield number, row


def _each(raw: dict[str, Any], column: str) -> list[dict[str, Any]]:
    """The row for each text of a column of lists; the row itself where the column holds a text."""
    value = raw.get(column)
    return [{**raw, column: text} for text in value or [None]] if isinstance(value, list) else [raw]


def _bound(raw: dict[str, Any], binding: Binding) -> Row | str:
    """The row, or why it cannot be used."""
    fmt = binding.format
    row: Row = {}
    kept: dict[str, list[int]] = {}
    for role, columns in binding.columns.items():
        values = [raw.get(column) for column in columns]
        if role not in fmt.lists:
            if not usable(values[0]):
                return NO_TEXT
            row[role] = values[0]
            continue
        texts = values[0] if len(columns) == 1 and isinstance(values[0], list) else values
        kept[role] = [i for i, text in enumerate(texts) if usable(text)]
        kept[role + "/all"] = list(range(len(texts)))
        row[role] = [texts[i] for i in kept[role]]
        if not row[role]:
            return NO_TEXT
    if fmt.label and binding.label:
        return _labelled(row, raw.get(binding.label), fmt.label, kept)
    return row


def _labelled(row: Row, label: Any, kind: str, kept: dict[str, list[int]]) -> Row | str:
    if label is None:
        return NO_LABEL
    read: dict[str, Callable[[], Row | str]] = {
        "class": lambda: _class(row, label),
        "binary": lambda: _binary(row, label),
        "embedding": lambda: {**row, "label": label},
    }
    if kind in read:
        return read[kind]()
    if kind in ("score", "margin"):
        return {**row, "label": float(label)} if math.isfinite(label) else NO_LABEL
    role = "docs" if kind == "grades" else "negative"
    before = 1 if kind == "scores" else 0  # the positive's score
    if len(label) != before + len(kept[role + "/all"]):
        return WRONG_COUNT
    numbers = [*label[:before], *(label[before + i] for i in kept[role])]
    if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        return NO_LABEL
    return {**row, "label": [float(n) for n in numbers]}


def _class(row: Row, label: Any) -> Row | str:
    if isinstance(label, str):
        return {**row, "label": label} if label.strip() else NO_LABEL
    if not math.isfinite(label):
        return NO_LABEL
    return {**row, "label": int(label)} if LARGEST_ID >= label == int(label) >= 0 else WRONG_LABEL["class"]


def _binary(row: Row, label: Any) -> Row | str:
    if not math.isfinite(label):
        return NO_LABEL
    return {**row, "label": int(label)} if label in (0, 1) else WRONG_LABEL["binary"]


LABEL_KEYS = {
    "class": "label",
    "binary": "label",
    "score": "score",
    "margin": "margin",
    "margins": "margins",
    "scores": "scores",
    "grades": "grades",
    "embedding": "embedding",
}
"""Kind of label -> column in what a conversion writes."""


def plain(number: float) -> float | int:
    """2.0 as 2: files stay small and readable. Larger numbers than are exact stay as they are."""
    return int(number) if float(number).is_integer() and abs(number) <= LARGEST_ID else number
