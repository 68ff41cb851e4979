"""`embedloss convert`: from one data format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from embedloss_cli.options import Drop, Json, Map, check_output, pairs
from embedloss_cli.output import print_json, wrapped

PANEL = "Data"
VALUES, FILES = "Parameters", "Files and models"


def convert(
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="A file, a saved folder, or a hub id; or judgements (see --corpus).")
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="The format wanted: pairs, triplets, listwise, ...")] = "",
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="A .jsonl or .parquet file.")] = "",
    source: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="How to read DATA, where several formats fit.")
    ] = None,
    mapping: Map = None,
    drop: Drop = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything random.", rich_help_panel=VALUES)] = 42,
    threshold: Annotated[
        float | None, typer.Option(metavar="X", help="Grades from here on make a positive.", rich_help_panel=VALUES)
    ] = None,
    below: Annotated[
        float | None,
        typer.Option(metavar="X", help="Grades below make a negative; the threshold if not given.", rich_help_panel=VALUES),
    ] = None,
    negatives: Annotated[
        int | None, typer.Option(metavar="N", help="Negatives of a positive, drawn at random.", rich_help_panel=VALUES)
    ] = None,
    per_class: Annotated[
        int | None, typer.Option("--per-class", metavar="N", help="Rows from each class.", rich_help_panel=VALUES)
    ] = None,
    noise: Annotated[
        float | None, typer.Option(metavar="X", help="Probability of deleting a word.", rich_help_panel=VALUES)
    ] = None,
    entailment: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Name or id of the class.", rich_help_panel=VALUES)
    ] = None,
    contradiction: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Name or id of the class.", rich_help_panel=VALUES)
    ] = None,
    scale_labels: Annotated[
        str | None,
        typer.Option(
            "--scale-labels", metavar="LOW,HIGH", help="Scale numbers linearly to this range.", rich_help_panel=VALUES
        ),
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(metavar="FILE", help="Documents: doc_id, text, perhaps title.", rich_help_panel=FILES)
    ] = None,
    queries: Annotated[str | None, typer.Option(metavar="FILE", help="Queries: query_id, text.", rich_help_panel=FILES)] = None,
    qrels: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Judgements, in place of DATA: query_id, doc_id, score.", rich_help_panel=FILES),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Folder or hub id of a bi-encoder or cross-encoder.", rich_help_panel=FILES),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    as_json: Json = False,
) -> None:
    """Convert a data set to another format; says what was dropped and why.

    embedloss formats lists all conversions and what each takes. The same data,
    parameters and seed give the same file.

    Examples:
    embedloss convert intents.csv --to pairs --out pairs.jsonl

    embedloss convert sts.jsonl --to pairs --threshold 0.8 --out pairs.jsonl

    embedloss convert qrels.jsonl --corpus corpus.jsonl --queries queries.jsonl
    --to n-tuples --out train.jsonl
    """
    given: dict[str, Any] = dict(locals())
    for option, value in (("--to", to), ("--out", out)):
        if not value:
            raise typer.BadParameter("is missing", param_hint=option)
    check_output(out, overwrite)
    names = ("threshold", "below", "negatives", "per_class", "noise", "entailment", "contradiction")
    parameters = {name: given[name] for name in (*names, "corpus", "queries", "teacher")}
    if scale_labels is not None:
        parameters["scale_labels"] = _two_numbers(scale_labels)
    from embedloss.convert import convert_file

    report = convert_file(
        data,
        to,
        Path(out),
        source_format=source,
        mapping=pairs(mapping, "--map"),
        drop=drop or (),
        seed=seed,
        qrels=qrels,
        **parameters,
    )
    if as_json:
        print_json({"data": data or qrels, "out": out, **report.to_json()})
        return
    shown = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in report.parameters.items())
    print(f"{data or qrels}: {report.source} to {report.target} ({shown})")
    for text in report.notes:
        print(wrapped(text))
    print(f"rows in  {report.rows_in:,}\nrows out {report.rows_out:,}")
    for reason, dropped in report.dropped.items():
        rows = ", ".join(map(str, dropped.rows)) + (", ..." if dropped.count > len(dropped.rows) else "")
        print(wrapped(f"dropped  {dropped.count:,}: {reason} (row{'s' * (dropped.count != 1)} {rows})"))
    print(f"written to {out}")


def _two_numbers(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not LOW,HIGH, such as 0,1", param_hint="--scale-labels") from None
    return low, high


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(rich_help_panel=PANEL)(convert)
