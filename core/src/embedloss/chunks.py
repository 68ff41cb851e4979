"""A data set as Arrow tables of a bounded number of rows, so that memory does not grow with the file. Imports no torch.

`data.load_rows` holds all rows, as training needs them; checks and conversions read through this.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from embedloss import data
from embedloss.check import is_text, kind_of, table_of
from embedloss.errors import EmbedlossError

ROWS = 10_000  # of a chunk


class Chunks:
    """Chunks of a data set; every iteration reads it again from the start.

    Args:
        source: as in `data.load_rows`.
        split: of a folder with several splits, or of a hub data set.

    Raises:
        EmbedlossError: E103 and E104 as `data.load_rows`, here or while iterating.
    """

    def __init__(self, source: str | Path, split: str | None = None) -> None:
        self.source = str(source)
        path = Path(self.source).expanduser()
        self._table: pa.Table | None = None
        self._path = path
        self._suffix = path.suffix.lower()
        self._schema: pa.Schema | None = None
        streams = split is None and self._suffix in (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
        try:
            streams = streams and "\0" not in self.source and path.is_file() and path.stat().st_size > 0
        except OSError:
            streams = False
        if not streams:
            self._table = table_of(data.load_rows(source, split))

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns of the whole data set; the first use reads a text file once."""
        if self._schema is None:
            if self._table is not None:
                self._schema = self._table.schema
            elif self._suffix == ".parquet":
                self._schema = next(iter(self._read())).schema
            else:
                self._schema = self._merged()
        return self._schema

    def kinds(self) -> dict[str, str]:
        """Name -> kind of every column, as `check.column_kinds`."""
        return {field.name: kind_of(field.type) for field in self.schema}

    def __iter__(self) -> Iterator[pa.Table]:
        schema = self.schema
        for table in self._read():
            yield _cast(table, schema)

    def _read(self) -> Iterator[pa.Table]:
        try:
            if self._table is not None:
                for begin in range(0, self._table.num_rows, ROWS):
                    yield self._table.slice(begin, ROWS)
            elif self._suffix == ".parquet":
                yield from self._parquet()
            elif self._suffix in (".csv", ".tsv"):
                yield from self._csv()
            else:
                yield from self._json_lines()
        except OSError as exception:
            reason = exception.strerror or exception
            raise EmbedlossError("E103", f"'{self.source}' cannot be read: {reason}.") from exception

    def _json_lines(self) -> Iterator[pa.Table]:
        rows = data._json_lines(self._path)
        done = 0
        while block := list(islice(rows, ROWS)):
            names = list(dict.fromkeys(name for row in block for name in row))
            arrays = [data._array([row.get(n) for row in block], n, done, self.source) for n in names]
            yield pa.table(arrays, names=names) if names else pa.table({"": pa.nulls(len(block))})
            done += len(block)

    def _csv(self) -> Iterator[pa.Table]:
        cells = data._csv_rows(self._path, "\t" if self._suffix == ".tsv" else ",")
        header = next(cells)
        done = 0
        while block := list(islice(cells, ROWS)):
            arrays = []
            for name, column in zip(header, zip(*block, strict=True), strict=True):
                field = self._schema.field(name) if self._schema is not None else None
                if field is not None and is_text(field.type):
                    arrays.append(pa.array(column))
                elif not any(cell.strip() for cell in column):
                    arrays.append(pa.nulls(len(column)))
                else:
                    arrays.append(data._array(data._typed(list(column)), name, done, self.source))
            yield pa.table(arrays, names=header)
            done += len(block)

    def _parquet(self) -> Iterator[pa.Table]:
        try:
            with pyarrow.parquet.ParquetFile(self._path) as file:
                if not file.metadata.num_rows or not file.metadata.num_columns:
                    raise EmbedlossError("E103", f"'{self.source}' holds no rows.")
                for batch in file.iter_batches(ROWS):
                    yield data._decoded(pa.Table.from_batches([batch]))
        except pa.ArrowException as exception:
            reason = data._shown(str(exception), 160)
            raise EmbedlossError("E103", f"'{self.source}' is not a Parquet file, or damaged: {reason}") from exception

    def _merged(self) -> pa.Schema:
        """The schema that holds for all chunks of a text file; E104 where there is none."""
        types: dict[str, pa.DataType] = {}
        done = 0
        for table in self._read():
            for field in table.schema:
                known = types.setdefault(field.name, field.type)
                if known == field.type:
                    continue
                both = _union(known, field.type)
                if both is None and self._suffix in (".csv", ".tsv"):
                    both = pa.string()
                if both is None:
                    raise data._mixed(field.name, done + 1, str(field.type), str(known), self.source)
                types[field.name] = both
            done += table.num_rows
        types.pop("", None)
        if not types:
            what = "rows without columns" if done else "a header and no rows" if self._suffix in (".csv", ".tsv") else "no rows"
            raise EmbedlossError("E103", f"'{self.source}' holds {what}.")
        if self._suffix in (".csv", ".tsv"):  # a column of blanks is a text in CSV
            types = {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in types.items()}
        return pa.schema(types)


def _union(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    try:
        schemas = [pa.schema({"x": left}), pa.schema({"x": right})]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.schema.equals(schema):
        return table
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def rows_of(chunks: Chunks) -> Iterator[dict[str, Any]]:
    """The rows as they are in the file, one after the other."""
    for table in chunks:
        yield from table.to_pylist()
