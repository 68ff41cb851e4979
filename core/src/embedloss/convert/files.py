"""Conversions from file to file."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from embedloss.binding import TEXT, TEXTS, Binding, fitting_loosely, key_of
from embedloss.check import _Checker
from embedloss.chunks import Chunks, rows_of
from embedloss.convert import table
from embedloss.convert.job import Conversion, ConversionReport, Job, Numbered, Parameter, Row
from embedloss.convert.rows import NO_LABEL, NO_TEXT, bound_rows, usable
from embedloss.convert.texts import Again
from embedloss.errors import EmbedlossError
from embedloss.examine import Reading, _ranked, plain_spec
from embedloss.formats import ROLE_COLUMNS, get_format

SUFFIXES = (".jsonl", ".parquet")
QUERY_IDS = ("query_id", "qid", "query-id")
DOC_IDS = ("doc_id", "docid", "corpus_id", "pid", "did", "passage_id", "document_id")
GRADES = ("score", "relevance", "grade", "label", "rel")
_IDS = ("_id", "id")


def convert(
    rows: Iterable[Numbered],
    source: str,
    target: str,
    *,
    seed: int = 42,
    report: ConversionReport | None = None,
    **parameters: Any,
) -> Iterator[Row]:
    """Convert rows.

    Args:
        rows: (number, row) with texts by role and "label", as `bound_rows` gives them; (query_id, doc_id, label) for "qrels".
        source: format of the rows, or "qrels".
        target: format wanted.
        seed: of everything random; the same rows, parameters and seed give the same result.
        report: gets what was dropped and why.
        parameters: of the conversion; see `table.CONVERSIONS`.

    Raises:
        EmbedlossError: E107 if there is no such conversion, or a parameter is unknown, missing or out of range.
    """
    conversion = table.get([source], target)
    values = check_parameters(conversion, parameters)
    report = report if report is not None else ConversionReport(source, target)
    report.parameters = {**{k: v for k, v in values.items() if isinstance(v, (int, float, str, tuple))}, "seed": seed}
    for row in conversion.function(rows, Job(report, random.Random(seed), values)):
        report.rows_out += 1
        yield row


def check_parameters(conversion: Conversion, given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of the conversion; E107 for one that is unknown, missing or out of range."""
    known = {p.name: p for p in conversion.parameters}
    name = f"{conversion.source} to {conversion.target}"
    for key in given:
        if key not in known:
            takes = ", ".join(p.option for p in known.values()) or "nothing"
            raise EmbedlossError("E107", f"{name} does not take --{key.replace('_', '-')}. It takes {takes} (and --seed).")
    missing = [p for p in known.values() if p.required and given.get(p.name) is None]
    if missing:
        needs = "; ".join(f"{p.option}: {p.help}" for p in missing)
        raise EmbedlossError("E107", f"{name} needs {', '.join(p.option for p in missing)} ({needs}).")
    values = {p.name: p.default for p in known.values()} | {k: v for k, v in given.items() if v is not None}
    for parameter in known.values():
        _check_value(parameter, values[parameter.name])
    if values.get("below") is not None and values["below"] > values["threshold"]:
        raise EmbedlossError("E107", f"--below {values['below']:g} is above --threshold {values['threshold']:g}.")
    return values


def _check_value(parameter: Parameter, value: Any) -> None:
    if value is None:
        return
    low = {"negatives": 1, "per_class": 0}.get(parameter.name)
    wrong = ""
    if low is not None and (not isinstance(value, int) or value < low):
        wrong = f"a whole number from {low}"
    elif parameter.name == "noise" and not 0 < value < 1:
        wrong = "between 0 and 1"
    elif parameter.kind is float and (isinstance(value, bool) or not isinstance(value, (int, float)) or value != value):
        wrong = "a number"
    elif parameter.name == "scale_labels" and not (len(value) == 2 and value[0] < value[1]):
        wrong = "two numbers, such as 0,1"
    if wrong:
        raise EmbedlossError("E107", f"{parameter.option} must be {wrong}; got {value}.")


# -- reading ----------------------------------------------------------------------------------------------------------
def choose_reading(chunks: Chunks, target: str, source: str | None, mapping: Mapping[str, str], drop: Sequence[str]) -> Binding:
    """How the columns are read so that they can become the target: the first format without faults in the first rows."""
    kinds = {**chunks.kinds(), **dict.fromkeys(several_positives(chunks.kinds(), mapping), TEXT)}
    found = [b for b, _ in fitting_loosely(kinds, mapping=mapping, drop=drop)]
    if source is not None:
        name = get_format(source).name
        chosen = [b for b in found if b.format.name == name]
        if not chosen:
            raise EmbedlossError(
                "E107", f"the columns do not make {name}; they make {', '.join(b.format.name for b in found)}."
            )
        found = chosen
    first = next(iter(chunks))
    readings = []
    for binding in found:
        checker = _Checker(binding, plain_spec(binding.format), False, "random")
        checker.add(first)
        readings.append(Reading(binding, checker.finish()))
    ranked = _ranked(readings) if len(first) > 1 else readings
    conversion = table.get([r.binding.format.name for r in ranked], target)
    return next(r.binding for r in ranked if r.binding.format.name == conversion.source)


def several_positives(kinds: Mapping[str, str], mapping: Mapping[str, str]) -> list[str]:
    """The columns that hold a list of positives, of which each makes a row."""
    names = (mapping["positive"],) if "positive" in mapping else [c for c in kinds if key_of(c) in ROLE_COLUMNS["positive"]]
    return [name for name in names if kinds.get(name) == TEXTS]


def _column(kinds: Iterable[str], names: Sequence[str], source: str, what: str) -> str:
    by_key = {key_of(name): name for name in kinds}
    for name in names:
        if key_of(name) in by_key:
            return by_key[key_of(name)]
    raise EmbedlossError(
        "E102", f"'{source}' has no column for {what}; it would be called {', '.join(names)}. Found: {', '.join(kinds)}."
    )


def read_texts(source: str, ids: Sequence[str], report: ConversionReport) -> dict[str, str]:
    """Id -> text of a corpus or a file of queries; a title is put before the text."""
    chunks = Chunks(source)
    names = list(chunks.kinds())
    key = _column(names, (*ids, *_IDS), source, "the id")
    text = _column(names, ("text", "query", "question", "contents", "content", "body"), source, "the text")
    title = next((name for name in names if key_of(name) == "title"), None)
    found: dict[str, str] = {}
    unusable = 0
    for row in rows_of(chunks):
        parts = [row[name] for name in (title, text) if name and usable(row[name])]
        if row[key] is None or not parts:
            unusable += 1
            continue
        identity = str(row[key])
        if identity in found:
            raise EmbedlossError("E103", f"'{source}' has the id '{identity}' twice.")
        found[identity] = " ".join(str(part) for part in parts)
    if title:
        report.notes.append(f"'{source}': the title is put before the text")
    if unusable:
        report.notes.append(f"'{source}': {unusable:,} rows without id or text are left out")
    return found


def judgements(source: str, report: ConversionReport) -> Callable[[], Iterator[Numbered]]:
    """(query_id, doc_id, label) of a file of judgements: columns by name, or the four columns of TREC."""
    path = Path(source)
    if path.suffix.lower() in (".txt", ".qrels", ".trec", "") and path.is_file():
        return lambda: _trec(path, report)
    chunks = Chunks(source)
    names = list(chunks.kinds())
    query, doc = _column(names, QUERY_IDS, source, "the query"), _column(names, DOC_IDS, source, "the document")
    grade = _column(names, GRADES, source, "the grade")

    def read() -> Iterator[Numbered]:
        for number, row in enumerate(rows_of(chunks), start=1):
            report.rows_in = number
            label = row[grade]
            if row[query] is None or row[doc] is None:
                report.drop(NO_TEXT.replace("text", "id"), number)
            elif isinstance(label, bool) or not isinstance(label, (int, float)) or not abs(label) < float("inf"):
                report.drop(NO_LABEL, number)
            else:
                yield number, {"query_id": str(row[query]), "doc_id": str(row[doc]), "label": float(label)}

    return read


def _trec(path: Path, report: ConversionReport) -> Iterator[Numbered]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            cells = line.split()
            if not cells:
                continue
            report.rows_in += 1
            try:
                query, _, doc, grade = cells
                yield number, {"query_id": query, "doc_id": doc, "label": float(grade)}
            except ValueError as exception:
                raise EmbedlossError(
                    "E103", f"'{path}' line {number} is no judgement (query 0 document grade): {line.strip()[:50]}"
                ) from exception


# -- writing ----------------------------------------------------------------------------------------------------------
def write_rows(rows: Iterable[Row], out: str | Path) -> None:
    """Write rows to a .jsonl or .parquet file, which appears when it is complete."""
    path = Path(out)
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix.lower() == ".parquet":
            _write_parquet(iter(rows), part)
        else:
            with part.open("w", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(part, path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def _write_parquet(rows: Iterator[Row], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    writer = None
    try:
        while block := list(islice(rows, 10_000)):
            for row in block:
                for key, value in row.items():  # one type for all blocks
                    if key in ("score", "margin"):
                        row[key] = float(value)
                    elif key in ("grades", "scores", "margins"):
                        row[key] = [float(v) for v in value]
            found = pa.Table.from_pylist(block, schema=writer.schema if writer else None)
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(path, found.schema)
            writer.write_table(found)
    finally:
        if writer is not None:
            writer.close()


def convert_file(
    source: str | None,
    target: str,
    out: str | Path,
    *,
    source_format: str | None = None,
    mapping: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    seed: int = 42,
    qrels: str | None = None,
    **parameters: Any,
) -> ConversionReport:
    """Convert a data set and write the result.

    Args:
        source: file, folder or hub id; judgements where `corpus` and `queries` are given.
        target: format wanted.
        out: a .jsonl or .parquet file; written over.
        source_format: how to read the source, where several formats fit.
        mapping: role -> column.
        drop: columns to leave out.
        seed: of everything random.
        qrels: judgements, in place of `source`.
        parameters: of the conversion; None: its default. `corpus` and `queries` are files, `teacher` a folder or hub id.

    Raises:
        EmbedlossError: E107 for a conversion that is not possible, E402 if the result cannot be written, else as `load_rows`.
    """
    target = get_format(target).name
    if Path(out).suffix.lower() not in SUFFIXES:
        raise EmbedlossError("E402", f"'{out}' must end in {' or '.join(SUFFIXES)}.")
    given = {k: v for k, v in parameters.items() if v is not None}
    judged = qrels is not None or "corpus" in given or "queries" in given
    if (source is None) == (qrels is None):
        raise EmbedlossError("E107", "give one source: DATA, or --qrels with --corpus and --queries.")
    read: Callable[[], Iterator[Numbered]]
    if judged:
        report = ConversionReport(table.QRELS, target)
        conversion = table.get([table.QRELS], target)
        check_parameters(conversion, given)
        for name, ids in (("corpus", DOC_IDS), ("queries", QUERY_IDS)):
            if isinstance(given[name], (str, Path)):
                given[name] = read_texts(str(given[name]), ids, report)
        read = judgements(str(qrels or source), report)
    else:
        chunks = Chunks(str(source))
        binding = choose_reading(chunks, target, source_format, mapping or {}, drop)
        report = ConversionReport(binding.format.name, target)
        conversion = table.get([binding.format.name], target)
        _explain_threshold(conversion, given, chunks, binding)
        check_parameters(conversion, given)
        report.notes.append(f"read as {binding.describe()}")
        for name in several_positives(chunks.kinds(), mapping or {}):
            if name == binding.columns.get("positive", ("",))[0]:
                report.notes.append(f"'{name}' holds lists: each of their texts makes a row")

        def read() -> Iterator[Numbered]:
            report.dropped.clear()
            return bound_rows(chunks, binding, report)

    if isinstance(given.get("teacher"), (str, Path)):
        from embedloss.convert.teacher import load_teacher

        given["teacher"] = load_teacher(str(given["teacher"]))
    rows = convert(Again(read), report.source, target, seed=seed, report=report, **given)
    first = next(rows, None)
    if first is None:
        reasons = "; ".join(f"{reason}: {d.count:,}" for reason, d in report.dropped.items())
        raise EmbedlossError("E107", f"no row is left of {report.rows_in:,}. {reasons or 'There is nothing to convert'}.")

    def all_rows() -> Iterator[Row]:
        yield first
        yield from rows

    write_rows(all_rows(), out)
    if parameters.get("teacher"):
        report.parameters["teacher"] = str(parameters["teacher"])
    return report


def _explain_threshold(conversion: Conversion, given: Mapping[str, Any], chunks: Chunks, binding: Binding) -> None:
    """A threshold cannot be guessed, but the range it lies in can be said."""
    if any(p.name == "threshold" and p.required for p in conversion.parameters) and "threshold" not in given:
        scores = [row["label"] for _, row in bound_rows(chunks, binding, ConversionReport("", ""))]
        span = f" Scores run from {min(scores):g} to {max(scores):g}." if scores else ""
        raise EmbedlossError(
            "E107", f"{conversion.source} to {conversion.target} needs --threshold: scores from there on make a positive.{span}"
        )
