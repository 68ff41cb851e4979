"""Conversions between data formats: one table, pure functions over rows, reproducible from a seed.

`convert_file` goes from file to file, `convert` from rows to rows; `CONVERSIONS` is the table that `embedloss formats` prints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedloss.convert.job import Conversion, ConversionReport, Parameter
from embedloss.convert.table import CONVERSIONS, find, from_format

if TYPE_CHECKING:
    from embedloss.convert.files import convert, convert_file, write_rows
    from embedloss.convert.rows import bound_rows

__all__ = [
    "CONVERSIONS",
    "Conversion",
    "ConversionReport",
    "Parameter",
    "bound_rows",
    "convert",
    "convert_file",
    "find",
    "from_format",
    "write_rows",
]


def __getattr__(name: str) -> Any:
    """What reads files comes with pyarrow, which the table does not need."""
    if name in ("convert", "convert_file", "write_rows", "bound_rows"):
        from embedloss.convert import files

        return getattr(files, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
