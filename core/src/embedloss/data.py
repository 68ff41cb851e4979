"""Rows from a file, a folder saved by `datasets`, or the hub. Imports no torch; writes nothing beside the user's data.

Files are read here and not through `datasets.load_dataset`, whose messages name neither line nor row, and which copies every
file into a cache. A name that looks like a local path never reaches the network.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedloss.errors import EmbedlossError

if TYPE_CHECKING:
    import datasets
    import pyarrow

KNOWN_KINDS = ".jsonl, .json, .csv, .tsv, .parquet, a folder saved by `datasets`, or a hub id such as owner/name"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_CHUNK = 10_000  # rows that are Python objects at a time
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*){1,2}(:[\w.\[\]%:-]+)?")


def load_rows(source: str | Path, split: str | None = None) -> datasets.Dataset:
    """Read a data set.

    Args:
        source: a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file, a folder saved by `datasets`, or a hub id:
            `owner/name`, `owner/name/config`, either with `:split`.
        split: of a folder with several splits, or of a hub data set; "train" by default.

    Raises:
        EmbedlossError: E103 for a source that cannot be read, E104 for a column of mixed types (with the row).
    """
    text = str(source)
    if not text.strip() or "\0" in text:
        raise EmbedlossError("E103", f"{text!r} is no name of a data set. Known kinds: {KNOWN_KINDS}.")
    path = Path(text).expanduser()
    try:
        if path.is_dir():
            return _read_folder(path, split)
        exists = path.is_file()
    except OSError as exception:
        raise EmbedlossError("E103", f"'{_shown(text)}' cannot be read: {exception.strerror or exception}.") from exception
    if exists:
        if split is not None:
            raise EmbedlossError("E103", f"'{text}' is one file and has no splits; found split '{split}'.")
        return _read_file(path)
    if looks_local(text):
        raise EmbedlossError("E103", f"'{text}' does not exist.{_neighbours(path)}")
    return _read_hub(text, split)


def looks_local(source: str) -> bool:
    """Whether a name that does not exist here means a file or folder, so that the hub is not asked.

    Hub ids have an owner: `owner/name`. A single word is a file or folder that is missing.
    """
    if not _HUB.fullmatch(source):
        return True
    path = Path(source.partition(":")[0])
    return bool(re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{1,7}", path.suffix)) or Path(path.parts[0]).exists()


def _neighbours(path: Path) -> str:
    """The most similar names beside a missing file."""
    import difflib

    parent = path.parent
    if not parent.is_dir():
        return f" There is no folder '{parent}'."
    try:
        names = [p.name for p in parent.iterdir() if p.is_dir() or p.suffix.lower() in SUFFIXES]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=2, cutoff=0.75)
    return f" Did you mean {' or '.join(repr(str(parent / n)) for n in near)}?" if near else ""


# -- files ------------------------------------------------------------
def _read_file(path: Path) -> datasets.Dataset:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise EmbedlossError(
            "E103", f"'{path}' is of an unknown kind ('{path.suffix or 'no extension'}'). Known kinds: {KNOWN_KINDS}."
        )
    try:
        if path.stat().st_size == 0:
            raise EmbedlossError("E103", f"'{path}' is empty.")
        if suffix == ".parquet":
            return _dataset(_read_parquet(path), str(path))
        if suffix in (".csv", ".tsv"):
            return _dataset(_read_csv(path, "\t" if suffix == ".tsv" else ","), str(path))
        rows = _json_document(path) if suffix == ".json" else _json_lines(path)
        return _dataset(_table(rows, str(path)), str(path))
    except OSError as exception:
        raise EmbedlossError("E103", f"'{path}' cannot be read: {exception.strerror or exception}.") from exception


def _decode(raw: bytes, path: Path, line: int, first: bool) -> str:
    if first and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise EmbedlossError("E103", f"'{path}' is UTF-16, not UTF-8. Save it again as UTF-8.")
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as exception:
        before = raw[: exception.start].count(b"\n")
        raise EmbedlossError(
            "E103",
            f"'{path}' is not UTF-8: byte 0x{raw[exception.start]:02x} in line {line + before}. "
            f"Save it again as UTF-8 (iconv -f latin1 -t utf-8 converts Latin-1).",
        ) from exception


def _shown(text: str, width: int = 50) -> str:
    text = text.strip()
    return text if len(text) <= width else text[: width - 3] + "..."


def json_row(raw: bytes, path: Path, number: int) -> dict[str, Any] | None:
    """The row of a line of JSON, None for a blank line; E103 with the line's number otherwise."""
    line = _decode(raw, path, number, number == 1)
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as exception:
        hint = ""
        if number == 1 and line.strip() in ("{", "[", "[{"):
            hint = " It looks like one JSON document: name the file .json."
        reason, column = getattr(exception, "msg", "nested too deeply"), getattr(exception, "colno", 1)
        raise EmbedlossError(
            "E103", f"'{path}' line {number} is not JSON: {reason} at column {column}: {_shown(line)}{hint}"
        ) from exception
    return _object(row, f"'{path}' line {number}")


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    count = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            row = json_row(raw, path, number)
            if row is not None:
                yield row
                count += 1
    if not count:
        raise EmbedlossError("E103", f"'{path}' holds no rows.")


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise EmbedlossError(
            "E103", f'{where} holds {_kind(row)}, not a row such as {{"anchor": "...", "positive": "..."}}: {_shown(str(row))}'
        )
    return row


def _json_document(path: Path) -> Iterator[dict[str, Any]]:
    text = _decode(path.read_bytes(), path, 1, True)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as exception:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and lines[0].strip().startswith("{") and lines[0].strip().endswith("}"):
            yield from _json_lines(path)  # one object a line under the other name
            return
        reason, line = getattr(exception, "msg", "nested too deeply"), getattr(exception, "lineno", 1)
        if not lines:
            raise EmbedlossError("E103", f"'{path}' holds no rows.") from exception
        found = text.splitlines()[line - 1] if line <= len(text.splitlines()) else ""
        raise EmbedlossError("E103", f"'{path}' line {line} is not JSON: {reason}: {_shown(found)}") from exception
    if isinstance(document, dict) and len(document) and not isinstance(document.get("data"), list):
        if all(isinstance(v, list) for v in document.values()):  # columns
            lengths = {k: len(v) for k, v in document.items()}
            if len(set(lengths.values())) > 1:
                raise EmbedlossError(
                    "E103", f"'{path}' has columns of different lengths: {', '.join(f'{k} {n}' for k, n in lengths.items())}."
                )
            document = [dict(zip(document, values, strict=True)) for values in zip(*document.values(), strict=True)]
        else:
            document = [document]
    rows = document["data"] if isinstance(document, dict) and "data" in document else document
    if not isinstance(rows, list):
        raise EmbedlossError("E103", f"'{path}' holds {_kind(rows)}, not a list of rows.")
    if not rows:
        raise EmbedlossError("E103", f"'{path}' holds no rows.")
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"'{path}' row {number}")


def _csv_rows(path: Path, delimiter: str) -> Iterator[list[str]]:
    """The header, then the cells of every row that is not blank."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        try:
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if header is None:
                    header = [cell.strip() for cell in cells]
                    _check_header(header, path, delimiter)
                    yield header
                    continue
                if len(cells) != len(header):
                    raise EmbedlossError(
                        "E103",
                        f"'{path}' line {reader.line_num} has {len(cells)} cells, the header has {len(header)} "
                        f"({', '.join(header)}): {_shown(delimiter.join(cells))}\n"
                        f"  A cell that holds the separator, a quote or a line break needs double quotes round it.",
                    )
                yield cells
        except UnicodeDecodeError:
            with path.open("rb") as raw:
                for number, line in enumerate(raw, start=1):
                    _decode(line, path, number, number == 1)
            raise
        except csv.Error as exception:
            raise EmbedlossError("E103", f"'{path}' line {reader.line_num} is not CSV: {exception}.") from exception
    if header is None:
        raise EmbedlossError("E103", f"'{path}' holds no rows.")


def _read_csv(path: Path, delimiter: str) -> pyarrow.Table:
    rows = _csv_rows(path, delimiter)
    header = next(rows)
    columns = list(zip(*rows, strict=True))
    if not columns:
        raise EmbedlossError("E103", f"'{path}' holds a header and no rows.")
    import pyarrow

    arrays = [_array(_typed(list(values)), name, 0, str(path)) for name, values in zip(header, columns, strict=True)]
    return pyarrow.table(arrays, names=header)


def _check_header(header: list[str], path: Path, delimiter: str) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise EmbedlossError("E103", f"'{path}' has the column '{twice[0]}' twice in its first line: {', '.join(header)}.")
    if "" in header:
        raise EmbedlossError("E103", f"'{path}' has a column without a name in its first line (column {header.index('') + 1}).")
    other = ";" if delimiter == "," else ","
    if len(header) == 1 and any(mark in header[0] for mark in (other, "\t")):
        found = "tab" if "\t" in header[0] else other
        raise EmbedlossError(
            "E103", f"'{path}' is separated by '{found}': {_shown(header[0])}. Name it .tsv, or separate by commas."
        )


def _typed(cells: list[str]) -> list[Any]:
    """Cells of a CSV column as whole numbers, numbers, JSON lists or texts; a kind holds for the column or not at all."""
    filled = [cell for cell in cells if cell.strip()]
    for read in (int, float):
        try:
            values = [read(cell) if cell.strip() else None for cell in cells]  # type: ignore[operator]
        except ValueError:
            continue
        # "007" and "1_000" are texts that int() happens to read
        if filled and all("_" not in c and not re.match(r"[+-]?0\d", c.strip()) for c in filled):
            return values
    if filled and all(cell.lstrip().startswith("[") for cell in filled):
        try:
            return [json.loads(cell) if cell.strip() else None for cell in cells]
        except ValueError:
            pass
    return list(cells)


def _read_parquet(path: Path) -> pyarrow.Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except pyarrow.ArrowException as exception:
        raise EmbedlossError(
            "E103", f"'{path}' is not a Parquet file, or damaged: {_shown(str(exception), 160)}"
        ) from exception
    return _decoded(table)


def _decoded(table: pyarrow.Table) -> pyarrow.Table:
    """Without dictionary-encoded columns."""
    import pyarrow

    for i, field in enumerate(table.schema):
        if pyarrow.types.is_dictionary(field.type):
            chunks = [c.dictionary_decode() for c in table[i].chunks]
            table = table.set_column(i, field.name, pyarrow.chunked_array(chunks, field.type.value_type))
    return table


# -- tables ------------------------------------------------------------
def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _table(rows: Iterable[dict[str, Any]], source: str) -> pyarrow.Table:
    import pyarrow

    tables: list[pyarrow.Table] = []
    chunk: list[dict[str, Any]] = []
    done = 0

    def flush() -> None:
        nonlocal done
        names = list(dict.fromkeys(name for row in chunk for name in row))
        if names:
            tables.append(pyarrow.table([_array([row.get(n) for row in chunk], n, done, source) for n in names], names=names))
        else:
            tables.append(pyarrow.table({"": pyarrow.nulls(len(chunk))}))
        done += len(chunk)
        chunk.clear()

    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK:
            flush()
    if chunk:
        flush()
    if all(t.column_names == [""] for t in tables):
        raise EmbedlossError("E103", f"'{source}' holds rows without columns.")
    tables = [t.drop([""]) if t.column_names == [""] else t for t in tables]
    try:
        return pyarrow.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pyarrow.ArrowException as exception:
        begin = 0
        seen: dict[str, Any] = {}
        for table in tables:
            for field in table.schema:
                known = seen.setdefault(field.name, field.type)
                if pyarrow.types.is_null(known):
                    seen[field.name] = field.type
                elif known != field.type and not pyarrow.types.is_null(field.type) and not _mergeable(known, field.type):
                    raise _mixed(field.name, begin + 1, str(field.type), str(known), source) from exception
            begin += len(table)
        raise EmbedlossError("E103", f"'{source}' holds columns whose types do not agree: {exception}") from exception


def _mergeable(left: pyarrow.DataType, right: pyarrow.DataType) -> bool:
    import pyarrow

    try:
        pyarrow.unify_schemas([pyarrow.schema({"x": left}), pyarrow.schema({"x": right})], promote_options="permissive")
    except pyarrow.ArrowException:
        return False
    return True


def _mixed(name: str, row: int, now: str, before: str, source: str) -> EmbedlossError:
    return EmbedlossError(
        "E104",
        f"column '{name}' of '{source}' mixes types: row {row} holds {now}, the rows before hold {before}.\n"
        f"  Write one type in all rows (null where there is no value).",
    )


def _array(values: list[Any], name: str, offset: int, source: str) -> pyarrow.Array:
    """One column; an `EmbedlossError` that names the first row whose type is another."""
    import pyarrow

    try:
        return pyarrow.array(values)
    except UnicodeEncodeError as exception:
        bad = next(i for i, v in enumerate(values) if not _encodable(v))
        raise EmbedlossError(
            "E104",
            f"column '{name}' of '{source}', row {offset + bad + 1}: the text is not valid Unicode (half a surrogate pair).",
        ) from exception
    except (pyarrow.ArrowException, OverflowError, TypeError, ValueError) as exception:
        first: Any = None
        for i, value in enumerate(values):
            if value is None:
                continue
            try:
                pyarrow.array([value])
            except (pyarrow.ArrowException, OverflowError, TypeError, ValueError) as single:
                reason = "a list of mixed types" if isinstance(value, list) else f"a value that cannot be used ({single})"
                shown = _shown(json.dumps(value, ensure_ascii=False, default=str))
                raise EmbedlossError(
                    "E104", f"column '{name}' of '{source}', row {offset + i + 1} holds {reason}: {shown}"
                ) from exception
            if first is None:
                first = value
                continue
            try:
                pyarrow.array([first, value])
            except (pyarrow.ArrowException, OverflowError, TypeError, ValueError):
                raise _mixed(
                    name, offset + i + 1, f"{_kind(value)} ({_shown(str(value), 30)})", _kind(first), source
                ) from exception
            if isinstance(value, list) and value and not first:
                first = value  # an empty list says nothing about its items
        raise EmbedlossError("E104", f"column '{name}' of '{source}' cannot be used: {exception}") from exception


def _encodable(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    if isinstance(value, dict):
        return all(_encodable(k) and _encodable(v) for k, v in value.items())
    return not isinstance(value, list) or all(_encodable(v) for v in value)


def _dataset(table: pyarrow.Table, source: str) -> datasets.Dataset:
    import datasets

    if not table.num_rows or not table.num_columns:
        raise EmbedlossError("E103", f"'{source}' holds no rows.")
    try:
        return datasets.Dataset(table)
    except (ValueError, TypeError, KeyError, NotImplementedError) as exception:
        raise EmbedlossError(
            "E103", f"'{source}' holds a column of a type that `datasets` does not know: {exception}"
        ) from exception


# -- folders and the hub ------------------------------------------------------------
def _read_folder(path: Path, split: str | None) -> datasets.Dataset:
    saved = any((path / name).is_file() for name in ("state.json", "dataset_info.json", "dataset_dict.json"))
    if not saved:
        files = sorted(p.name for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        what = f" It holds {', '.join(files[:5])}; give one of these files." if files else ""
        raise EmbedlossError(
            "E103", f"folder '{path}' is not a data set saved by `datasets` (no dataset_info.json or dataset_dict.json).{what}"
        )
    import datasets
    import pyarrow

    _check_inside(path)
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as exception:
        raise EmbedlossError(
            "E103", f"the data set in folder '{path}' is damaged: {_shown(str(exception), 200)}"
        ) from exception
    return _pick_split(loaded, str(path), split)


def _check_inside(path: Path) -> None:
    """E103 where a saved data set names files outside of its folder: it would read what is not part of it."""
    for file in (*path.glob("state.json"), *path.glob("*/state.json"), *path.glob("dataset_dict.json")):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # said where it is read
        if not isinstance(found, dict):
            continue
        files = found.get("_data_files") or []
        names = [str(f.get("filename", "")) for f in files if isinstance(f, dict)] + [str(s) for s in found.get("splits") or []]
        for name in names:
            if ".." in name.replace("\\", "/").split("/") or name.startswith(("/", "\\")):
                raise EmbedlossError("E103", f"'{file}' names '{name}', which is outside of the data set's folder.")


def _pick_split(loaded: Any, source: str, split: str | None) -> datasets.Dataset:
    import datasets

    if isinstance(loaded, datasets.DatasetDict):
        names = list(loaded)
        wanted = split or ("train" if "train" in names else names[0] if len(names) == 1 else None)
        if wanted not in names:
            problem = f"no split '{split}'" if split else "several splits and none is called 'train'"
            raise EmbedlossError("E103", f"'{source}' has {problem}. Splits: {', '.join(names)}.")
        loaded = loaded[wanted]
    elif split is not None:
        raise EmbedlossError("E103", f"'{source}' has no splits; found split '{split}'.")
    if not len(loaded):
        raise EmbedlossError("E103", f"'{source}' holds no rows.")
    return loaded


def _read_hub(source: str, split: str | None) -> datasets.Dataset:
    return _pick_split(_load_hub(source, split, False), source, None)


def stream_hub(source: str) -> datasets.IterableDataset:
    """A data set of the hub that is read as it arrives; E103 where it cannot be."""
    loaded: datasets.IterableDataset = _load_hub(source, None, True)
    return loaded


def _load_hub(source: str, split: str | None, streaming: bool) -> Any:
    name, _, named_split = source.partition(":")
    parts = name.split("/")
    wanted = split or named_split or "train"
    import datasets

    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    config = parts[2] if len(parts) > 2 else None
    try:
        return datasets.load_dataset("/".join(parts[:2]), config, split=wanted, streaming=streaming)
    except Exception as exception:  # the hub client raises classes of several libraries
        raise EmbedlossError(
            "E103",
            f"there is no file or folder '{source}', and it could not be read from the hub as a data set "
            f"('{'/'.join(parts[:2])}', split '{wanted}'): {type(exception).__name__}: {_shown(str(exception), 200)}",
        ) from exception
    finally:
        if bars:
            datasets.enable_progress_bars()
