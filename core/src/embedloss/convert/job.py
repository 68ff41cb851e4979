"""What every conversion gets and what it leaves behind. Plain data; imports no torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
Numbered = tuple[int, Row]
"""Number of the row in the file, from 1; texts by role (a list for a list role) and "label"."""

_SHOWN = 5


@dataclass
class Dropped:
    """Rows that gave nothing, for one reason."""

    count: int = 0
    rows: list[int] = field(default_factory=list)


@dataclass
class ConversionReport:
    """What a conversion did.

    Args:
        source: format that was read; "qrels" for judgements with their corpus and queries.
        target: format that was written.
        parameters: every parameter with its value, and the seed.
        rows_in: rows read.
        rows_out: rows written.
        dropped: reason -> number of rows read that gave none, and the first of them.
        notes: what else was decided.
    """

    source: str
    target: str
    parameters: dict[str, Any] = field(default_factory=dict)
    rows_in: int = 0
    rows_out: int = 0
    dropped: dict[str, Dropped] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def drop(self, reason: str, *rows: int) -> None:
        """Count rows as dropped."""
        found = self.dropped.setdefault(reason, Dropped())
        found.count += len(rows)
        found.rows += rows[: _SHOWN - len(found.rows)]

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        dropped = [{"reason": reason, "count": d.count, "rows": d.rows} for reason, d in self.dropped.items()]
        return {**vars(self), "dropped": dropped}


@dataclass
class Job:
    """One conversion under way.

    Args:
        report: rows dropped are counted here.
        rng: of everything random.
        values: the conversion's parameters, all of them.
    """

    report: ConversionReport
    rng: random.Random
    values: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a conversion.

    Args:
        name: as in Python; hyphens for underscores on the command line.
        default: None: must be given.
        kind: float, int, str, tuple (two numbers) or object (a teacher, the rows of a file).
        help: one line.
        required: there is no default.
    """

    name: str
    kind: type
    help: str
    default: Any = None
    required: bool = False

    @property
    def option(self) -> str:
        """On the command line."""
        return "--" + self.name.replace("_", "-")


Function = Callable[[Iterable[Numbered], Job], Iterator[Row]]


@dataclass(frozen=True)
class Conversion:
    """An entry of the table.

    Args:
        source: name of a format, or "qrels".
        target: name of a format.
        summary: one line.
        function: rows -> rows; pure but for the report and the random generator it is given.
        parameters: what it takes beside the seed.
        streams: memory does not grow with the number of rows.
        worth: points more or less for `embedloss suggest`: less where the conversion throws information away.
    """

    source: str
    target: str
    summary: str
    function: Function
    parameters: tuple[Parameter, ...] = ()
    streams: bool = True
    worth: int = 0

    def to_json(self) -> dict[str, object]:
        """Plain data for `--json`."""
        parameters = [
            {"name": p.name, "option": p.option, "default": p.default, "required": p.required, "help": p.help}
            for p in self.parameters
        ]
        return {
            "source": self.source,
            "target": self.target,
            "summary": self.summary,
            "parameters": parameters,
            "streams": self.streams,
        }
