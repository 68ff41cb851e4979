"""`embedloss suggest`: which loss for this data."""

from __future__ import annotations

from typing import Annotated

import typer

from embedloss_cli.data_commands import PANEL, Data
from embedloss_cli.options import Drop, Json, Map, pairs
from embedloss_cli.output import print_json, wrapped

SHOWN = 6


def suggest(
    data: Data,
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="bi-encoder or cross-encoder.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="The model to train, for the commands.")] = None,
    mapping: Map = None,
    drop: Drop = None,
    as_json: Json = False,
) -> None:
    """Suggest losses for a data set, with reasons and the commands to type.

    First those that take it as it is, then those that take it after a conversion.
    Columns that mean nothing known are left out; the commands say which.

    Example: embedloss suggest pairs.jsonl
    """
    from embedloss.suggest import suggest as find

    answer = find(data, mapping=pairs(mapping, "--map"), drop=drop or (), kind=kind, model=model)
    found = answer.found
    if as_json:
        print_json(
            {
                "data": data,
                "rows": found.report.rows,
                "binding": found.binding.to_json(),
                "formats": [r.binding.format.name for r in found.readings],
                "faults": [fault.to_json() for fault in found.report.faults],
                "notes": [*found.report.warnings, *found.notes],
                "as_is": [s.to_json() for s in answer.as_is],
                "converted": [s.to_json() for s in answer.converted],
                "refused": answer.refused,
            }
        )
        return
    print(f"{data}: {found.report.rows:,} rows")
    print(wrapped(found.binding.describe()))
    for note in [*found.report.warnings, *found.notes]:
        print(wrapped(f"note: {note}"))
    for fault in found.report.faults:
        print(wrapped(f"{fault.code} {fault}"))
    if found.report.faults:
        print(wrapped("Losses that need these rows would refuse the data: repair them, or convert, which leaves them out."))
    if answer.as_is:
        print("\nAs it is")
    for place, each in enumerate(answer.as_is[:SHOWN], start=1):
        print(f"\n{place}. {each.loss}" + ("" if each.format == found.binding.format.name else f" (read as {each.format})"))
        for reason in each.reasons:
            print(wrapped(f"- {reason}", "   "))
        print(f"   {each.command}")
    if len(answer.as_is) > SHOWN:
        print(wrapped(f"\nAlso possible: {', '.join(s.loss for s in answer.as_is[SHOWN:])}"))
    said = {str(fault) for fault in found.report.faults}
    for name, why in answer.refused.items():
        if why not in said:
            print(wrapped(f"Not {name}: {why}"))
    if answer.converted:
        print("\nAfter a conversion")
    for place, each in enumerate(answer.converted[:SHOWN], start=1):
        print(f"\n{place}. {each.loss} on {each.format}")
        for reason in each.reasons:
            print(wrapped(f"- {reason}", "   "))
        print(f"   {each.conversion}\n   {each.command}")


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(rich_help_panel=PANEL)(suggest)
