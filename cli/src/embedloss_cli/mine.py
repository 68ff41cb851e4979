"""`embedloss mine`: hard negatives for pairs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedloss.model_names import check_model_name
from embedloss_cli.options import Drop, Json, Map, check_output, pairs
from embedloss_cli.output import print_json, wrapped

if TYPE_CHECKING:
    from embedloss.mining import MiningReport
    from embedloss.mining.store import Progress

PANEL = "Data"
CHOICE, FILES = "Which neighbours become negatives", "Files and models"


def mine(
    data: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="Pairs: a file, a saved folder, or a hub id; or use --qrels.")
    ] = None,
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="The bi-encoder that searches.")] = "",
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="A .jsonl or .parquet file.")] = "",
    output_format: Annotated[
        str,
        typer.Option(
            "--output-format",
            "--to",
            metavar="FORMAT",
            help="n-tuples, n-tuples+scores, triplets, pairs+binary or listwise.",
        ),
    ] = "n-tuples",
    mapping: Map = None,
    drop: Drop = None,
    num_negatives: Annotated[int, typer.Option(metavar="N", help="Of each query, at most.", rich_help_panel=CHOICE)] = 3,
    range_min: Annotated[int, typer.Option(metavar="N", help="Pass over the N nearest.", rich_help_panel=CHOICE)] = 0,
    range_max: Annotated[
        int | None, typer.Option(metavar="N", help="Only the N nearest; --range-min included.", rich_help_panel=CHOICE)
    ] = None,
    max_score: Annotated[float | None, typer.Option(metavar="X", help="No higher score.", rich_help_panel=CHOICE)] = None,
    min_score: Annotated[float | None, typer.Option(metavar="X", help="No lower score.", rich_help_panel=CHOICE)] = None,
    absolute_margin: Annotated[
        float | None, typer.Option(metavar="X", help="This much below the worst positive.", rich_help_panel=CHOICE)
    ] = None,
    relative_margin: Annotated[
        float | None, typer.Option(metavar="X", help="The same as a share: 0.05 is 5 %.", rich_help_panel=CHOICE)
    ] = None,
    sampling_strategy: Annotated[
        str, typer.Option(metavar="NAME", help="top, or random among all that are left.", rich_help_panel=CHOICE)
    ] = "top",
    seed: Annotated[int, typer.Option(metavar="N", help="Of random.", rich_help_panel=CHOICE)] = 42,
    corpus: Annotated[
        str | None, typer.Option(metavar="FILE", help="Search these: doc_id, text, perhaps title.", rich_help_panel=FILES)
    ] = None,
    queries: Annotated[str | None, typer.Option(metavar="FILE", help="Queries: query_id, text.", rich_help_panel=FILES)] = None,
    qrels: Annotated[
        str | None, typer.Option(metavar="FILE", help="Judgements: query_id, doc_id, score.", rich_help_panel=FILES)
    ] = None,
    cross_encoder: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Scores the candidates again.", rich_help_panel=FILES)
    ] = None,
    query_prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Put before queries.", rich_help_panel=FILES)] = None,
    corpus_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Put before documents.", rich_help_panel=FILES)
    ] = None,
    index: Annotated[str, typer.Option(metavar="NAME", help="exact or faiss.", rich_help_panel=FILES)] = "exact",
    work: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Keep embeddings here; without, they go when all is done.", rich_help_panel=FILES),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    as_json: Json = False,
) -> None:
    """Mine hard negatives: texts that a model ranks high and that are not known as
    answers.

    What is known as a positive of a query, by text or by id, is never taken. An
    interrupted run goes on where it stopped when it is typed again.

    Examples:
    embedloss mine pairs.jsonl --model M --relative-margin 0.05 --out hard.jsonl

    embedloss mine --qrels qrels.jsonl --corpus corpus.jsonl
    --queries queries.jsonl --model M --to triplets --out hard.jsonl
    """
    given: dict[str, Any] = dict(locals())
    from embedloss.convert.files import SUFFIXES
    from embedloss.errors import EmbedlossError
    from embedloss.mining.settings import MiningSettings

    for option, value in (("--model", model), ("--out", out)):
        if not value:
            raise typer.BadParameter("is missing", param_hint=option)
    if Path(out).suffix.lower() not in SUFFIXES:
        raise EmbedlossError("E402", f"'{out}' must end in {' or '.join(SUFFIXES)}.")
    check_output(out, overwrite)
    names = MiningSettings.__dataclass_fields__
    settings = {name: given[name] for name in names}
    MiningSettings(**settings)  # before torch is loaded
    for name in (model, cross_encoder) if cross_encoder else (model,):
        check_model_name(name)
    from embedloss import mine as find
    from embedloss.convert import write_rows
    from embedloss.mining.store import remove

    folder = Path(work) if work else Path(f"{out}.work")
    with bar() as progress:
        mined = find(
            data,
            model,
            corpus=corpus,
            queries=queries,
            qrels=qrels,
            cross_encoder=cross_encoder,
            mapping=pairs(mapping, "--map"),
            drop=drop or (),
            query_prompt=query_prompt,
            corpus_prompt=corpus_prompt,
            work=folder,
            progress=progress,
            **settings,
        )
    write_rows(mined.rows, out)
    if not work:
        remove(folder)
    report = mined.report
    if as_json:
        print_json({"data": data or qrels, "out": out, **report.to_json()})
        return
    print(f"{data or qrels}: {report.pairs:,} pairs, {report.queries:,} queries, {report.documents:,} documents searched")
    show(report)
    print(f"written to {out}")


@contextmanager
def bar() -> Iterator[Progress]:
    """A progress bar on stderr, one line a stage; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    shown = Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[str, Any] = {}

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = shown.add_task(stage, total=total)
        shown.update(tasks[stage], completed=done)

    with shown:
        yield tell


def show(report: MiningReport) -> None:
    """Counts, then a table of scores."""
    from embedloss.training.report import table

    for text in report.notes:
        print(wrapped(text))
    for reason, dropped in report.dropped.items():
        rows = ", ".join(map(str, dropped.rows)) + (", ..." if dropped.count > len(dropped.rows) else "")
        print(wrapped(f"dropped  {dropped.count:,}: {reason} (row{'s' * (dropped.count != 1)} {rows})"))
    print(wrapped(f"{report.known:,} pairs of a query and a known positive or the query's own text were never candidates"))
    for name, count in report.passed_over.items():
        print(wrapped(f"{name} took out {count:,} candidates"))
    if report.without:
        print(wrapped(f"{report.without:,} queries have no negative and are left out (a larger --range-max looks further)"))
    if report.fewer:
        print(wrapped(f"{report.fewer:,} queries have fewer negatives than asked for"))
    print(f"rows out {report.rows_out:,} ({report.target}) in {report.seconds:.1f} s\n")
    scores = report.scores()
    columns = list(next(iter(scores.values())))
    print(table(["score", *columns], [[name, *(f"{v:.3f}" for v in values.values())] for name, values in scores.items()]))
    print()
    if report.above:
        text = f"{report.above:.1%} of the negatives score at least as high as their positive"
        text += "; some of them may be answers that nobody marked (--relative-margin, --max-score or --range-min avoid them)"
        print(wrapped(text))


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(rich_help_panel=PANEL)(mine)
