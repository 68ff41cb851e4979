"""`embedloss report RUN...`: one HTML page that compares runs."""

from __future__ import annotations

from typing import Annotated

import typer

PANEL = "Models"


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Output folders of `embedloss train`.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The page.")] = "report.html",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it is there.")] = False,
) -> None:
    """Compare runs on one HTML page: metrics, curves, settings, neighbours.

    The page needs no network and no other file.

    Examples:
    embedloss report runs/a runs/b --out report.html
    """
    from pathlib import Path

    from embedloss.errors import EmbedlossError
    from embedloss.reporting import read_run, write_page
    from embedloss_cli.options import check_output

    if not out.endswith((".html", ".htm")):
        raise EmbedlossError("E402", f"the page is HTML: type --out {Path(out).with_suffix('.html')}")
    check_output(out, overwrite)
    twice = [name for place, name in enumerate(runs) if name in runs[:place]]
    if twice:
        raise EmbedlossError("E406", f"the run '{twice[0]}' is given twice.")
    found = [read_run(run) for run in runs]
    print(f"{len(found)} run{'s' if len(found) > 1 else ''}: {write_page(found, out)}")


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(rich_help_panel=PANEL)(report)
