"""Options that several commands share, and how their text is read."""

from __future__ import annotations

from typing import Annotated

import typer

PLUGIN_FILES: list[str] = []  # files given with --plugin; kept in the saved configuration, so that the run can be repeated
COLUMNS = "Columns"
Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="ROLE=COLUMN", help="Bind a column to a role; repeatable.", rich_help_panel=COLUMNS),
]
Drop = Annotated[
    list[str] | None,
    typer.Option("--drop", metavar="COLUMN", help="Leave a column out; repeatable.", rich_help_panel=COLUMNS),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def pairs(values: list[str] | None, option: str) -> dict[str, str]:
    """`["a=b"]` -> `{"a": "b"}`; a usage error for a value without "="."""
    found: dict[str, str] = {}
    for value in values or ():
        key, equals, rest = value.partition("=")
        if not equals or not key.strip() or not rest:
            raise typer.BadParameter(f"'{value}' is not KEY=VALUE, such as {option} anchor=query", param_hint=option)
        if key.strip() in found:
            raise typer.BadParameter(f"'{key.strip()}' is given twice", param_hint=option)
        found[key.strip()] = rest
    return found


def numbers(text: str | None, option: str, least: int) -> list[int] | None:
    """`"384,192"` -> `[384, 192]`; a usage error for anything but whole numbers from `least` on."""
    if text is None:
        return None
    found = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) >= least for part in found):
        raise typer.BadParameter(f"'{text}' is no list of whole numbers, such as {option} 10,100", param_hint=option)
    return [int(part) for part in found]


def check_output(path: str, overwrite: bool) -> None:
    """E402 if an output file or folder is there already or its place cannot be written."""
    import os
    from pathlib import Path

    from embedloss.errors import EmbedlossError

    target = Path(path)
    used = target.is_file() or (target.is_dir() and any(target.iterdir()))
    if used and not overwrite:
        raise EmbedlossError("E402", f"'{path}' exists already. Type --overwrite to replace it.")
    parent = next(p for p in (target, *target.absolute().parents) if p.exists())
    if parent.is_file() and parent != target:
        raise EmbedlossError("E402", f"'{parent}' is a file; '{path}' cannot be made under it.")
    if not os.access(parent, os.W_OK):
        raise EmbedlossError("E402", f"no permission to write in '{parent}'.")
