"""Rows one after the other from files, the hub and iterables, with a position to go on from. Imports no torch.

A source is read again for every pass. `state` after a row is plain data; `read(state)` goes on with the next row.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from embedloss import data
from embedloss.errors import EmbedlossError

Row = dict[str, Any]
State = dict[str, Any]
EXAMINED = 1000  # rows from which the types of a CSV file are taken


class RowSource(ABC):
    """Rows with a position.

    Args:
        name: for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def read(self, state: State | None = None, turn: int = 0) -> Iterator[Row]:
        """The rows from a position on, or from the start; `turn` counts the passes. One reader at a time."""

    @abstractmethod
    def state(self) -> State:
        """The position after the row that was read last."""


class JsonLines(RowSource):
    """A file with one JSON object a line."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self.offset = self.line = 0

    def read(self, state: State | None = None, turn: int = 0) -> Iterator[Row]:
        """As the base."""
        self.offset, self.line = (state["offset"], state["line"]) if state else (0, 0)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for raw in file:
                self.offset += len(raw)
                self.line += 1
                row = data.json_row(raw, self.path, self.line)
                if row is not None:
                    yield row

    def state(self) -> State:
        """Bytes and lines read."""
        return {"offset": self.offset, "line": self.line}


class Csv(RowSource):
    """A CSV or TSV file. A column has the type of its first rows; a cell of another type is E104."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self.delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        self.offset = self.line = self.row = 0
        self.header: list[str] = []
        first = next(self._records({"offset": 0, "line": 0, "row": 0}), None)
        if first is None:
            raise EmbedlossError("E103", f"'{path}' holds no rows.")
        self.header = [cell.strip() for cell in first]
        data._check_header(self.header, path, self.delimiter)
        self.begin: State = {"offset": self.offset, "line": self.line, "row": 0}
        self.types: list[type] = []
        for column in zip(*islice(self._cells(None), EXAMINED), strict=True):
            values = [v for v in data._typed(list(column)) if v is not None]
            self.types.append(type(values[0]) if values else str)

    def _records(self, state: State) -> Iterator[list[str]]:
        """The cells of every line that is not blank, from a position on."""
        csv.field_size_limit(2**31 - 1)
        self.offset, self.line, self.row = state["offset"], state["line"], state["row"]
        with self.path.open("rb") as file:
            file.seek(self.offset)
            try:
                for cells in csv.reader(self._lines(file), delimiter=self.delimiter, strict=True):
                    if any(cell.strip() for cell in cells):
                        yield cells
            except csv.Error as exception:
                raise EmbedlossError("E103", f"'{self.path}' line {self.line} is not CSV: {exception}.") from exception

    def _lines(self, file: Any) -> Iterator[str]:
        for raw in file:
            self.offset += len(raw)
            self.line += 1
            yield data._decode(raw, self.path, self.line, self.line == 1)

    def _cells(self, state: State | None) -> Iterator[list[str]]:
        for cells in self._records(state or self.begin):
            if len(cells) != len(self.header):
                raise EmbedlossError(
                    "E103",
                    f"'{self.path}' line {self.line} has {len(cells)} cells, the header has {len(self.header)} "
                    f"({', '.join(self.header)}): {data._shown(self.delimiter.join(cells))}",
                )
            self.row += 1
            yield cells

    def read(self, state: State | None = None, turn: int = 0) -> Iterator[Row]:
        """As the base."""
        for cells in self._cells(state):
            row = zip(self.header, cells, self.types, strict=True)
            yield {name: self._value(cell, kind) for name, cell, kind in row}

    def _value(self, cell: str, kind: type) -> Any:
        if kind is str:
            return cell
        if not cell.strip():
            return None
        try:
            if kind is list:
                return json.loads(cell)
            return int(cell) if kind is int and cell.strip().lstrip("+-").isdigit() else float(cell)
        except ValueError:
            return cell  # the type of the column is checked with its row number

    def state(self) -> State:
        """Bytes, lines and rows read."""
        return {"offset": self.offset, "line": self.line, "row": self.row}


class Parquet(RowSource):
    """A Parquet file, row group by row group."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path, self.row = path, 0

    def read(self, state: State | None = None, turn: int = 0) -> Iterator[Row]:
        """As the base."""
        import pyarrow
        import pyarrow.parquet

        self.row = state["row"] if state else 0
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                group, before = 0, 0
                while group < file.num_row_groups and before + file.metadata.row_group(group).num_rows <= self.row:
                    before += file.metadata.row_group(group).num_rows
                    group += 1
                for batch in file.iter_batches(1000, row_groups=range(group, file.num_row_groups)):
                    skip = max(self.row - before, 0)
                    before += batch.num_rows
                    for row in data._decoded(pyarrow.Table.from_batches([batch])).slice(skip).to_pylist():
                        self.row += 1
                        yield row
        except pyarrow.ArrowException as exception:
            reason = data._shown(str(exception), 160)
            raise EmbedlossError("E103", f"'{self.path}' is not a Parquet file, or damaged: {reason}") from exception

    def state(self) -> State:
        """Rows read."""
        return {"row": self.row}


class Rows(RowSource):
    """Anything that can be iterated again and gives dicts: `datasets.IterableDataset`, a data set, a class with `__iter__`.

    `state_dict` and `load_state_dict` are used where there are any; else a position is reached by reading up to it.
    """

    def __init__(self, rows: Iterable[Row], name: str = "the stream") -> None:
        super().__init__(name)
        if iter(rows) is rows:
            raise EmbedlossError(
                "E103", f"{name} is an iterator, which can be read only once; give an object whose __iter__ starts anew."
            )
        if getattr(rows, "_distributed", None) is not None:
            raise EmbedlossError(
                "E103", f"{name} was split by node already. Give the whole stream: every process takes its share of each batch."
            )
        self.rows, self.row = rows, 0
        self.stateful = hasattr(rows, "state_dict") and hasattr(rows, "load_state_dict")
        self.start: State = rows.state_dict() if self.stateful else {}  # type: ignore[attr-defined]

    def read(self, state: State | None = None, turn: int = 0) -> Iterator[Row]:
        """As the base."""
        rows: Any = self.rows
        if hasattr(rows, "set_epoch"):
            rows.set_epoch(turn)
        self.row = state["row"] if state else 0
        skip = 0
        if self.stateful:
            begin = state["rows"] if state else self.start
            rows.load_state_dict({**begin, "epoch": turn} if "epoch" in begin else begin)
        else:
            skip = self.row
        for row in islice(iter(rows), skip, None):
            if not isinstance(row, dict):
                raise EmbedlossError("E103", f"{self.name}, row {self.row + 1}: found {type(row).__name__}, not a dict.")
            self.row += 1
            yield row

    def state(self) -> State:
        """Rows read, and the iterable's own state."""
        found: State = {"row": self.row}
        if self.stateful:
            found["rows"] = self.rows.state_dict()  # type: ignore[attr-defined]
        return found


def open_source(source: Any) -> RowSource:
    """A file, folder, hub id or iterable as a source.

    Raises:
        EmbedlossError: E103 for what cannot be read in this way.
    """
    if not isinstance(source, (str, Path)):
        return source if isinstance(source, RowSource) else Rows(source, f"the {type(source).__name__}")
    text = str(source)
    path = Path(text).expanduser()
    kind = path.suffix.lower()
    if path.is_file() and kind == ".json":
        raise EmbedlossError("E103", f"'{text}' is one JSON document and must be read as a whole; write .jsonl to stream it.")
    if path.is_file() and path.stat().st_size:
        readers: dict[str, Callable[[Path], RowSource]] = {
            ".jsonl": JsonLines,
            ".ndjson": JsonLines,
            ".csv": Csv,
            ".tsv": Csv,
            ".parquet": Parquet,
        }
        if kind in readers:
            return readers[kind](path)
    if path.exists() or data.looks_local(text):
        return Rows(data.load_rows(text), text)  # a folder is mapped into memory and not read; else the error says why
    return Rows(data.stream_hub(text), text)
