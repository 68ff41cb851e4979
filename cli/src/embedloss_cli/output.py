"""Plain output that fits the terminal. rich is imported only by the commands that need it."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from embedloss.errors import EmbedlossError


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return max(shutil.get_terminal_size((80, 24)).columns, 40)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def wrapped(text: str, indent: str = "", limit: int | None = None, hang: str = "  ") -> str:
    """Text in lines that fit; long words such as names and commands stay whole."""
    lines = []
    for line in text.splitlines() or [""]:
        own = indent + line[: len(line) - len(line.lstrip())]
        lines.append(
            textwrap.fill(
                line.strip(),
                limit or width(),
                initial_indent=own,
                subsequent_indent=own + hang,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return "\n".join(lines)


def number(value: float) -> str:
    """Four decimals; a whole number above 1, such as a count, without."""
    return f"{value:,.0f}" if value > 1 and float(value).is_integer() else f"{value:.4f}"


def columns(rows: list[tuple[str, str]], indent: str = "  ", most: int = 30) -> str:
    """Two columns; the second is wrapped, and a long first one gets a line of its own."""
    first = min(max((len(a) for a, _ in rows), default=0), most)
    lines = []
    for left, right in rows:
        place = indent + " " * (first + 2)
        text = textwrap.wrap(right, max(width() - len(place), 20), break_long_words=False, break_on_hyphens=False) or [""]
        if len(left) > first:
            lines += [indent + left, place + text[0]]
        else:
            lines.append(f"{indent}{left:<{first}}  {text[0]}".rstrip())
        lines += [place + line for line in text[1:]]
    return "\n".join(lines)


def fitted(corner: str, names: Sequence[str], lines: Sequence[tuple[str, Mapping[str, float]]], columns: int = 6) -> str:
    """One line a model, one column a metric, in blocks of as many metrics as fit the terminal; a missing value is empty."""
    from embedloss.training.report import table

    first = max([len(corner), *(len(who) for who, _ in lines)])
    blocks: list[list[str]] = []
    for name in names:
        room = width() - first - sum(max(len(n), 6) + 2 for n in (blocks[-1] if blocks else ()))
        if not blocks or len(blocks[-1]) == columns or room < max(len(name), 6) + 2:
            blocks.append([])
        blocks[-1].append(name)
    shown = [
        table([corner, *block], [[who, *(number(of[n]) if n in of else "" for n in block)] for who, of in lines])
        for block in blocks
    ]
    return "\n\n".join(shown)


def print_error(error: EmbedlossError) -> None:
    """Code and message on stderr."""
    first, _, rest = str(error).partition("\n")
    print(wrapped(first), file=sys.stderr)
    if rest:
        # The line that points at a column of an expression must stay under it.
        keep = error.code == "E202"
        print(rest if keep else wrapped(rest), file=sys.stderr)
    print(f"  See `embedloss explain {error.code}`.", file=sys.stderr)


def note(text: str) -> None:
    """A sentence on stderr, so that stdout stays clean."""
    print(wrapped(text), file=sys.stderr)
