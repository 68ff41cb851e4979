"""Commands about data: check, demo-data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from embedloss_cli.options import Drop, Json, Map, check_output, pairs
from embedloss_cli.output import print_json, wrapped

PANEL = "Data"
Data = Annotated[
    str, typer.Argument(metavar="DATA", help="A .jsonl, .json, .csv, .tsv or .parquet file, a saved folder, or a hub id.")
]


def plain_spec(fmt: Any) -> Any:
    """A spec that takes one format and asks nothing else of its labels."""
    from embedloss.spec import LossSpec

    return LossSpec(name=fmt.name, target="embedloss:none", summary="", family="", formats=(fmt,))


def bind_best(
    dataset: Any, mapping: dict[str, str], drop: list[str], format_name: str | None = None
) -> tuple[Any, Any, list[Any]]:
    """Binding, report and all formats that fit, for data whose loss is not known: the first format without faults."""
    from embedloss.binding import bind, fitting
    from embedloss.check import check_rows, column_kinds
    from embedloss.formats import get_format

    kinds = column_kinds(dataset)
    if format_name:
        fmt = get_format(format_name)
        bindings = [bind(kinds, [fmt], loss_name=fmt.name, mapping=mapping, drop=drop)]
    else:
        bindings = fitting(kinds, mapping=mapping, drop=drop)
    reports = [(b, check_rows(dataset, b, plain_spec(b.format))) for b in bindings]
    clean = [r for r in reports if not r[1].faults] or reports[:1]
    # Labels that are all 0 or 1 could be class ids as well; 0 and 1 is what they are.
    best = next((r for r in clean if r[0].format.label == "binary" and r[0].columns == clean[0][0].columns), clean[0])
    return (*best, [b for b, report in reports if len(report.faults) <= len(best[1].faults)])


def check(
    data: Data,
    loss: Annotated[
        str | None, typer.Option("--loss", metavar="EXPR", help="The loss to train, such as mnrl(scale=20).")
    ] = None,
    mapping: Map = None,
    drop: Drop = None,
    scale_labels: Annotated[bool, typer.Option("--scale-labels", help="Labels will be scaled to the loss's range.")] = False,
    as_json: Json = False,
) -> None:
    """Check a data set: format, roles, labels, and all faults with their rows.

    Exits with 1 where training would be refused.

    Example: embedloss check pairs.jsonl --loss mnrl
    """
    from embedloss.data import load_rows

    roles = pairs(mapping, "--map")
    if loss:
        from embedloss.registry import expression_specs

        expression_specs(loss)  # before anything is read
    dataset = load_rows(data)
    if loss:
        from embedloss.check import bind, check_rows, column_kinds
        from embedloss.registry import create_loss

        spec = create_loss(loss).spec
        binding = bind(
            column_kinds(dataset),
            spec.data_formats(),
            loss_name=spec.name,
            any_format=spec.any_format,
            mapping=roles,
            drop=drop or (),
        )
        report = check_rows(dataset, binding, spec, scale_labels=scale_labels)
        others: list[Any] = []
        takers = []
    else:
        from embedloss.registry import list_losses

        binding, report, bindings = bind_best(dataset, roles, drop or [])
        others = [b for b in bindings if b is not binding]
        names = {b.format.name for b in bindings}
        takers = [s.name for s in list_losses() if s.status == "stable" and names.intersection(s.format_names())]
    if as_json:
        fitting_formats = [binding.format.name, *(b.format.name for b in others)]
        print_json(
            {"data": data, "binding": binding.to_json(), "formats": fitting_formats, "losses": takers, **report.to_json()}
        )
        raise typer.Exit(1 if report.faults else 0)
    print(f"{data}: {len(dataset):,} rows")
    print(wrapped(binding.describe()))
    if report.classes:
        shown = ", ".join(f"{name}={i}" for name, i in list(report.classes.items())[:6])
        print(
            wrapped(f"{len(report.classes)} classes by name, numbered: {shown}" + (", ..." if len(report.classes) > 6 else ""))
        )
    elif report.label_span:
        print(f"labels from {report.label_span[0]:g} to {report.label_span[1]:g}")
    for warning in report.warnings:
        print(wrapped(f"note: {warning}"))
    if others:
        print(wrapped(f"It also fits: {', '.join(b.format.name for b in others)}"))
    report.raise_if_faulty()
    if takers:
        print(wrapped(f"Losses that take it: {', '.join(takers)}"))
    elif loss:
        print("No fault found.")


def demo_data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made if it is missing.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already.")] = False,
    as_json: Json = False,
) -> None:
    """Make training data from the docstrings on this machine.

    The first sentence is the query, the rest the document. Files: train.jsonl and
    test.jsonl (no top-level module on both sides, no text twice), and docs.jsonl
    (the test documents, for search). At most 30,000 pairs.

    Example: embedloss demo-data demo
    """
    from embedloss_cli.demo import write_demo_data

    check_output(str(folder), overwrite)
    counts = write_demo_data(folder)
    if as_json:
        print_json({"folder": str(folder), **counts})
        return
    print(f"{folder / 'train.jsonl'}: {counts['train.jsonl']:,} pairs from {counts['train modules']} modules")
    print(f"{folder / 'test.jsonl'}:  {counts['test.jsonl']:,} pairs from {counts['test modules']} other modules")
    print(f"{folder / 'docs.jsonl'}:  {counts['docs.jsonl']:,} documents of the test side")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(rich_help_panel=PANEL)(check)
    app.command("demo-data", rich_help_panel=PANEL)(demo_data)
