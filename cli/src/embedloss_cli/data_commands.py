"""Commands about data: check, demo-data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedloss_cli.options import Drop, Json, Map, check_output, pairs
from embedloss_cli.output import print_json, wrapped

PANEL = "Data"
Data = Annotated[
    str, typer.Argument(metavar="DATA", help="A .jsonl, .json, .csv, .tsv or .parquet file, a saved folder, or a hub id.")
]


def check(
    data: Data,
    loss: Annotated[
        str | None, typer.Option("--loss", metavar="EXPR", help="The loss to train, such as mnrl(scale=20).")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Count the tokens that this model would read.")
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option("--eval-data", metavar="DATA", help="Check it too, and what both have in common.")
    ] = None,
    mapping: Map = None,
    drop: Drop = None,
    scale_labels: Annotated[bool, typer.Option("--scale-labels", help="Labels will be scaled to the loss's range.")] = False,
    sampler: Annotated[str, typer.Option("--sampler", metavar="NAME", help="The batch sampler of the run.")] = "auto",
    as_json: Json = False,
) -> None:
    """Check a data set: format, roles, labels, repeated texts, and all faults with their rows.

    Exits with 1 where training would be refused.

    Examples:
    embedloss check pairs.jsonl --loss mnrl

    embedloss check pairs.jsonl --eval-data dev.jsonl --model M
    """
    from embedloss.examine import examine, token_counter
    from embedloss.registry import list_losses

    roles = pairs(mapping, "--map")
    spec = None
    if loss:
        from embedloss.registry import create_loss, expression_specs

        expression_specs(loss)  # before torch is loaded
        spec = create_loss(loss).spec
    tokenizer, longest = token_counter(model) if model else (None, 0)
    found = examine(
        data,
        spec=spec,
        mapping=roles,
        drop=drop or (),
        scale_labels=scale_labels,
        sampler=sampler,
        eval_data=eval_data,
        tokenizer=tokenizer,
        max_length=longest,
    )
    binding, report, facts = found.binding, found.report, found.facts
    fewest = len(report.faults)
    others = [r.binding for r in found.readings[1:] if len(r.report.faults) <= fewest]
    names = {binding.format.name, *(b.format.name for b in others)}
    fitting = [s for s in list_losses() if s.status == "stable" and names.intersection(s.format_names()) and spec is None]
    takers = [s.name for s in fitting if s.row_weights or not binding.weight]
    wrong = bool(report.faults) or (found.evaluation is not None and bool(found.evaluation.report.faults))
    if as_json:
        document = {
            "data": data,
            "binding": binding.to_json(),
            "formats": [binding.format.name, *(b.format.name for b in others)],
            "losses": takers,
            **report.to_json(),
            "warnings": [*report.warnings, *found.notes],
            "facts": facts.to_json(),
            "refused": wrong,
        }
        if found.evaluation is not None:
            evaluation = found.evaluation
            document["evaluation"] = {"data": eval_data, "binding": evaluation.binding.to_json(), **evaluation.report.to_json()}
        print_json(document)
        raise typer.Exit(1 if wrong else 0)
    print(f"{data}: {report.rows:,} rows")
    print(wrapped(binding.describe()))
    if report.classes:
        shown = ", ".join(f"{name}={i}" for name, i in list(report.classes.items())[:6])
        print(
            wrapped(f"{len(report.classes)} classes by name, numbered: {shown}" + (", ..." if len(report.classes) > 6 else ""))
        )
    elif report.label_span:
        print(f"labels from {report.label_span[0]:g} to {report.label_span[1]:g}")
    for role, lengths in facts.characters.items():
        text = f"{role}: {_span(lengths)} characters"
        if role in facts.tokens:
            text += f", {_span(facts.tokens[role])} tokens"
        if role in facts.texts_per_row:
            text += f"; {_span(facts.texts_per_row[role])} texts a row"
        print(wrapped(text))
    for warning in [*report.warnings, *found.notes]:
        print(wrapped(f"note: {warning}"))
    if others:
        print(wrapped(f"It also fits: {', '.join(b.format.name for b in others)}"))
    report.raise_if_faulty()
    if found.evaluation is not None:
        print(f"{eval_data}: {found.evaluation.report.rows:,} rows, {found.evaluation.binding.format.name}")
        found.evaluation.report.raise_if_faulty()
    if takers:
        print(wrapped(f"Losses that take it: {', '.join(takers)}"))
    elif loss:
        print("No fault found.")


def _span(lengths: dict[str, float]) -> str:
    if lengths["min"] == lengths["max"]:
        return f"{lengths['min']:,}"
    return f"{lengths['min']:,} to {lengths['max']:,} (median {lengths['median']:,})"


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
