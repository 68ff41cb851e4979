"""`embedloss compare`: which loss is best on the user's own data."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedloss.model_names import check_model_name
from embedloss_cli.data_commands import Data
from embedloss_cli.model_commands import PANEL
from embedloss_cli.options import Drop, Json, Map, pairs
from embedloss_cli.output import note, print_json, width, wrapped

if TYPE_CHECKING:
    from embedloss.comparison import Comparison, Standing

BUDGET, WHAT = "Budget", "What is compared"


def compare(
    data: Data,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder of the runs; the same command goes on there.")],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Folder, hub id, or static(dimension=256).")],
    losses: Annotated[
        str | None,
        typer.Option("--losses", metavar="A,B", help="Names or expressions; by default all that fit.", rich_help_panel=WHAT),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option("--eval-data", metavar="DATA", help="By default a tenth of the rows.", rich_help_panel=WHAT),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="NAME", help="Of a folder with qrels.", rich_help_panel=WHAT)
    ] = None,
    metric: Annotated[str | None, typer.Option("--metric", metavar="NAME", help="To rank by.", rich_help_panel=WHAT)] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="bi-encoder or cross-encoder.", rich_help_panel=WHAT)
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", metavar="N", help="Steps of every run.", rich_help_panel=BUDGET)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", metavar="N", help="Or minutes of every run.", rich_help_panel=BUDGET)
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Runs of every loss.", rich_help_panel=BUDGET)] = 3,
    halving: Annotated[
        bool, typer.Option("--halving", help="Stop poor losses after a ninth, a third.", rich_help_panel=BUDGET)
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, metavar="N", help="Runs at a time.", rich_help_panel=BUDGET)] = 1,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Rows a step.", rich_help_panel=BUDGET)] = 32,
    learning_rate: Annotated[float | None, typer.Option(metavar="X", help="The same for all.", rich_help_panel=BUDGET)] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Longest text.", rich_help_panel=BUDGET)
    ] = None,
    mapping: Map = None,
    drop: Drop = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew.")] = False,
    as_json: Json = False,
) -> None:
    """Train every loss that fits a data set under one budget, and rank them.

    All runs have the same start, batch size and seeds; the same command goes on
    after an interruption. Differences that chance explains are marked.

    Examples:
    embedloss compare pairs.jsonl --model M --max-steps 100 --out runs/losses

    embedloss compare pairs.jsonl --model M --losses "mnrl,gist(guide='G')"
    --minutes 5 --halving --out runs/two
    """
    from embedloss.comparison import Comparison, Plan

    if not model.startswith("static"):
        check_model_name(model)
    given: dict[str, Any] = {"mapping": pairs(mapping, "--map"), "drop": drop or [], "losses": expressions(losses or "")}
    plan = Plan(
        data, out, model, eval_data, given["losses"], max_steps, minutes, seeds, metric, halving, batch_size, learning_rate,
        kind, max_length, given["mapping"], given["drop"], split,
    )  # fmt: skip
    job = Comparison(plan, note, overwrite)
    if not as_json:
        print(wrapped(job.task.describe()))
        print(
            wrapped(
                f"\n{len(job.candidates)} losses, {seeds} seed(s), by {job.metric}: {', '.join(c.loss for c in job.candidates)}"
            )
        )
        for name, why in job.left_out.items():
            print(wrapped(f"Not {name}: {why}"))
    standings = job.run(min(jobs, os.cpu_count() or 1))
    page = report(job, standings)
    if as_json:
        print_json(document(job, standings))
        return
    show(job, standings)
    best = standings[0]
    if page:
        print(f"\n{page}")
    if best.error:
        raise typer.Exit(1)
    print(f"\nTo train the best in full:\n{job.winner_command(best.loss)}")


def expressions(text: str) -> list[str]:
    """`a, b(x=[1, 2])` is two expressions: commas inside brackets and quotes separate nothing."""
    found, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        depth += (character in "([{") - (character in ")]}") if not quote else 0
        if character == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += character
    return [part.strip() for part in found if part.strip()]


def show(job: Comparison, standings: list[Standing]) -> None:
    """The table, 80 columns wide, and what the marks mean."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    base = job.state["baselines"]
    start = base["untrained"][job.metric]
    table = Table(box=None, padding=(0, 1), show_edge=False)
    table.add_column("")
    table.add_column("loss", overflow="fold", min_width=22)
    for name in (job.metric, "gain", "steps", "time", "memory"):
        table.add_column(name, justify="right", no_wrap=name != job.metric)
    for place, each in enumerate(standings, start=1):
        if each.error:
            table.add_row("-", Text(each.loss), "failed")
            continue
        spread = "" if each.spread is None else f" ± {each.spread:.4f}"
        mark = "=" if each.noise and place > 1 else ""
        table.add_row(
            f"{place}{mark}", Text(each.loss), f"{each.mean:.4f}{spread}", f"{each.mean - start:+.4f}", f"{each.steps:,}",
            f"{each.seconds:.0f} s", f"{each.memory / 2**20:,.0f} MB",
        )  # fmt: skip
    for name, metrics in base.items():
        if job.metric in metrics:
            table.add_row("", Text(name, style="italic"), f"{metrics[job.metric]:.4f}", f"{metrics[job.metric] - start:+.4f}")
    print()
    Console(width=width(), highlight=False).print(table)
    print()
    if any(s.noise for s in standings[1:]):
        print(wrapped("=  no difference from the best that the spread over the seeds would not explain (95 %)"))
    elif all(s.noise is None for s in standings):
        print(wrapped("One seed: how large chance differences are is not known. Type --seeds 3."))
    if any(not s.complete for s in standings):
        print(wrapped("Losses with fewer steps were stopped by --halving; their values do not compare with the others'."))
    for each in standings:
        if each.error:
            print(wrapped(f"{each.loss} failed: {each.error}"))


def document(job: Comparison, standings: list[Standing]) -> dict[str, Any]:
    """The result for `--json`."""
    return {
        "data": job.plan.data,
        "eval_data": job.task.source,
        "format": job.task.format,
        "metric": job.metric,
        "order": [each.loss for each in job.candidates],
        "baselines": job.state["baselines"],
        "standings": [{**vars(s), **({"mean": s.mean, "spread": s.spread} if s.values else {})} for s in standings],
        "left_out": job.left_out,
        "command": None if standings[0].error else job.winner_command(standings[0].loss),
    }


def report(job: Comparison, standings: list[Standing]) -> str:
    """Write the page that shows the first run of every loss, in their order; its path."""
    from embedloss.reporting import read_run, write_page

    runs = [read_run(folder) for folder in job.folders(standings)]
    return str(write_page(runs, job.out / "report.html")) if runs else ""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel=PANEL)(compare)
