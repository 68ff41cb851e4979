"""`embedloss tune`: search settings of one loss expression with optuna."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedloss_cli.options import Drop, Json, Map, pairs
from embedloss_cli.output import note, print_json, wrapped

PANEL = "Models"


def tune(
    config: Annotated[str | None, typer.Argument(metavar="[CONFIG.yaml]", help="Settings of every trial.")] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Folder, hub id, or static(dimension=256).")] = None,
    data: Annotated[str | None, typer.Option(metavar="DATA", help="Training data: file, folder or hub id.")] = None,
    eval_data: Annotated[str | None, typer.Option(metavar="DATA", help="What trials are compared on.")] = None,
    loss: Annotated[str | None, typer.Option(metavar="EXPR", help="With fields to search: mnrl(scale={scale}).")] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of the search; the same one goes on.")] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option("--range", metavar="NAME=A..B", help="A..B, A..B:log, or A,B,C; repeatable."),
    ] = None,
    trials: Annotated[int, typer.Option(metavar="N", min=1, help="Finished trials, earlier ones included.")] = 8,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="What is better; by default the main metric.")] = None,
    mapping: Map = None,
    drop: Drop = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Search settings: each trial is a run; the best one's command is printed.

    Names of ranges are settings of `embedloss train`, or fields of the loss.

    Examples:
    embedloss tune --model M --data d.jsonl --eval-data e.jsonl --out runs/search
    --loss "mnrl(scale={scale})" --range scale=10..40
    --range learning_rate=1e-6..1e-4:log --trials 8
    """
    from embedloss.errors import EmbedlossError
    from embedloss.training.config import RunConfig, read_yaml
    from embedloss.training.report import table
    from embedloss.tuning import Range
    from embedloss.tuning import tune as search

    values: dict[str, Any] = read_yaml(config) if config else {}
    given = {"model": model, "data": data, "eval_data": eval_data, "loss": loss, "out": out, "metric_for_best": metric}
    values.update({key: value for key, value in given.items() if value is not None})
    if mapping:
        values["map"] = pairs(mapping, "--map")
    if drop:
        values["drop"] = drop
    for item in sets or ():
        key, equals, value = item.partition("=")
        if not equals:
            raise EmbedlossError("E401", f"--set {item}: type --set key=value, such as --set epochs=3.")
        values[key.strip().replace("-", "_")] = value
    base = RunConfig.from_mapping(values, f"'{config}'" if config else "the command line")
    found = search(base, [Range.read(text) for text in ranges or ()], trials, note if as_json else print)
    if as_json:
        print_json({**vars(found), "trials": [{"number": n, "values": v, found.metric: x} for n, v, x in found.trials]})
        return
    names = list(found.trials[0][1])
    rows = [[str(n), *(_text(v[name]) for name in names), f"{x:.4f}"] for n, v, x in found.trials]
    print("\n" + table(["trial", *names, found.metric], rows))
    if found.failed:
        print(f"{len(found.failed)} trials failed and are not counted")
    print("\nThe best settings:\n" + wrapped(found.command, hang="    "))


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(rich_help_panel=PANEL)(tune)
