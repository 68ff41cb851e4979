"""`embedloss conformance`: installed losses through the kit that plugin authors run."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated

import typer

from embedloss_cli.output import note, print_json, wrapped

if TYPE_CHECKING:
    from embedloss.testing import Report

MARKS = {"passed": "+", "expected failure": "x", "not applicable": ".", "failed": "F", "unexpected pass": "U"}


def conformance(
    name: Annotated[
        str | None, typer.Argument(metavar="LOSS", help="A loss, or an expression such as 'mnrl(scale=20) + 0.1 * gor()'.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every installed loss.")] = False,
    processes: Annotated[bool, typer.Option("--processes", help="Also compare two processes with one.")] = False,
    check: Annotated[list[str] | None, typer.Option("--check", metavar="CHECK", help="Only this check; repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check that a loss keeps what trainers and other losses rely on: the conformance kit.

    Exit status 1 if a check fails. What a loss is right to fail, it says in its spec.

    Example: embedloss conformance mnrl
    """
    if (name is None) != all_:
        raise typer.BadParameter("name one loss, or say --all", param_hint="LOSS")
    from embedloss.expression import Call, parse
    from embedloss.registry import get_spec, list_losses
    from embedloss.testing import CHECKS, check_loss

    wanted = None if check is None else [c.removeprefix("check_").replace("-", "_") for c in check]
    for unknown in [c for c in wanted or () if c not in CHECKS]:
        raise typer.BadParameter(f"'{unknown}' is none of {', '.join(CHECKS)}", param_hint="--check")
    subjects: list[object]
    if name is None:
        subjects = list(list_losses())
    else:
        node = parse(name)
        bare = isinstance(node, Call) and not node.args and not node.kwargs
        subjects = [get_spec(node.name) if bare and isinstance(node, Call) else name]
    reports = []
    for subject in subjects:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about widths and names that are tried on purpose
            report = check_loss(subject, processes=processes, checks=wanted)  # type: ignore[arg-type]
        reports.append(report)
        if not as_json and len(subjects) > 1:
            note(f"{report.loss}: {'conforms' if report.ok else f'{len(report.failures)} failed'}")
    if as_json:
        print_json([report.to_json() for report in reports])
    elif len(reports) == 1:
        print("\n".join(wrapped(line, hang="    ") for line in str(reports[0]).splitlines()))
    else:
        print(matrix(reports))
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


def matrix(reports: list[Report]) -> str:
    """Losses by checks, in Markdown, with the reasons of what did not pass under it."""
    checks = list(dict.fromkeys(result.check for report in reports for result in report.results))
    rows = [["loss", *checks]]
    notes = []
    for report in reports:
        found = {result.check: result for result in report.results}
        rows.append([report.loss, *(MARKS[found[c].status] if c in found else "." for c in checks)])
        notes += [
            f"- {report.loss}, {r.check}: {r.status}: {r.message}"
            for r in report.results
            if r.status not in ("passed", "not applicable")
        ]
    rows.insert(1, ["---"] * len(rows[0]))
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    key = "+ passed, x fails for the reason given in the spec, . does not apply, F failed, U passes against expectation"
    return "\n\n".join([table, key, *(["\n".join(notes)] if notes else [])])


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("conformance", rich_help_panel="Plugins")(conformance)
