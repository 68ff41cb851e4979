"""What there is: list, show, formats, plugins, explain. No torch, but for the parameters in `show`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedloss_cli.output import columns, print_json, width, wrapped

PANEL = "Losses"
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def list_losses(
    format_: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="Takes this data: pairs (any label), or exactly pairs+score."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="KIND", help="Takes this kind of label: none, class, score, ...")
    ] = None,
    family: Annotated[str | None, typer.Option(metavar="FAMILY", help="Of this family: ranking, triplet, ...")] = None,
    model_kind: Annotated[str | None, typer.Option(metavar="KIND", help="Trains a bi-encoder or a cross-encoder.")] = None,
    as_json: Json = False,
) -> None:
    """List the installed losses and the data they take.

    Example: embedloss list --format pairs+score
    """
    from embedloss import registry

    specs = registry.list_losses(format=format_, family=family, model_kind=model_kind, labels=labels)
    if as_json:
        print_json([spec.to_json() for spec in specs])
        return
    if not specs:
        print("No installed loss fits. `embedloss formats` lists formats and labels; pip install 'embedloss[all]'.")
        return
    for name in dict.fromkeys(spec.family for spec in specs):
        print(f"\n{name}")
        for spec in (s for s in specs if s.family == name):
            _print_entry(spec)
    print(f"\n{len(specs)} loss{'es' * (len(specs) != 1)}. `embedloss show NAME` says more.")


def _takes(spec: Any) -> str:
    if spec.modifier:
        return "what the loss inside takes"
    return "any" if spec.any_format and not spec.formats else ", ".join(spec.format_names())


def _print_entry(spec: Any) -> None:
    marks = [] if spec.status == "stable" else [f"deprecated: {spec.deprecated_by}" if spec.deprecated_by else spec.status]
    marks += [] if spec.models == ("bi-encoder",) else [" and ".join(spec.models)]
    names = f"{spec.name} ({', '.join(spec.aliases)})" if spec.aliases else spec.name
    print(wrapped(names, "  "))
    print(columns([("takes", _takes(spec) + "".join(f"; {m}" for m in marks)), ("", spec.summary)], "    "))


def show(name: Annotated[str, typer.Argument(metavar="NAME", help="Name or alias of a loss.")], as_json: Json = False) -> None:
    """Describe one loss: data, parameters, formula, paper, example.

    Example: embedloss show mnrl
    """
    from embedloss.errors import EmbedlossError
    from embedloss.registry import get_spec, parameters_of

    spec = get_spec(name)
    parameters: dict[str, Any] = {}
    problem = ""
    try:
        parameters = dict(parameters_of(spec))
    except EmbedlossError as error:
        problem = str(error)
    defaults = {k: None if p.default is p.empty else p.default for k, p in parameters.items()}
    required = [k for k, p in parameters.items() if p.default is p.empty]
    if as_json:
        known = {
            k: v if isinstance(v, (str, int, float, bool, list, tuple, type(None))) else str(v) for k, v in defaults.items()
        }
        extra = {"parameters": known, "required": required, "doc": spec.doc, "example": spec.example or _example(spec)}
        print_json({**spec.to_json(), **extra})
        return
    print(spec.name)
    print(wrapped(spec.summary, "  "))
    facts = [
        ("aliases", ", ".join(spec.aliases)),
        ("class", spec.field_name),
        ("family", f"{spec.family} ({spec.distribution})"),
        ("takes", _takes(spec)),
        ("trains", " and ".join(spec.models)),
        ("sampler", spec.sampler),
        ("labels", spec.allowed_labels()),
        (
            "status",
            "" if spec.status == "stable" else spec.status + (f"; type {spec.deprecated_by}" if spec.deprecated_by else ""),
        ),
        ("paper", spec.citation),
        ("example", f'--loss "{spec.example or _example(spec)}"'),
    ]
    print()
    print(columns([fact for fact in facts if fact[1]]))
    print("\nparameters")
    rows = [(k, "required" if k in required else f"default {v!r}") for k, v in defaults.items()]
    print(columns(rows) if rows else wrapped(problem, "  ") if problem else "  none")
    if spec.doc:
        print()
        _print_markdown(spec.doc)


def _example(spec: Any) -> str:
    call = min((spec.name, *spec.aliases), key=len).replace("-", "_")
    return f"{call}(mnrl())" if spec.modifier else call


def _print_markdown(text: str) -> None:
    import io

    from rich.console import Console
    from rich.markdown import Markdown

    real = Console(width=width())
    buffer = io.StringIO()
    console = Console(file=buffer, width=min(width(), 120), force_terminal=real.is_terminal, no_color=not real.color_system)
    console.print(Markdown(text, code_theme="ansi_light" if real.is_terminal else "default"))
    print("\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines()))


def formats(as_json: Json = False) -> None:
    """List the data formats: roles, accepted column names, an example row, conversions.

    Columns are matched by these names; any other name needs --map role=column.
    """
    from embedloss.convert.table import CONVERSIONS
    from embedloss.formats import FORMATS, ROLE_COLUMNS

    if as_json:
        print_json(
            [
                {
                    "name": f.name,
                    "summary": f.summary,
                    "roles": {role: list(ROLE_COLUMNS.get(role, (role,))) for role in f.roles},
                    "lists": sorted(f.lists),
                    "label": f.label,
                    "label_columns": list(f.label_kind.columns) if f.label_kind else [],
                    "example": f.example,
                    "conversions": [c.to_json() for c in CONVERSIONS if c.target == f.name],
                }
                for f in FORMATS.values()
            ]
        )
        return
    for f in FORMATS.values():
        print(f"{f.name}: {f.summary}")
        rows = []
        for role in f.roles:
            several = f" (a list, or {role}_1, {role}_2, ...)" if role in f.lists else ""
            rows.append((role, ", ".join(ROLE_COLUMNS.get(role, (role,))) + several))
        if f.label_kind:
            rows.append(("label", f"{', '.join(f.label_kind.columns)} ({f.label_kind.summary})"))
        rows.append(("row", f.example))
        print(columns(rows))
        print()
    _print_conversions()
    print(wrapped("The names behind each role are those that are known without --map role=column. `id` identifies a row."))


def _print_conversions() -> None:
    from embedloss.convert.table import CONVERSIONS

    print("Conversions (embedloss convert DATA --to FORMAT --out FILE)")
    for target in dict.fromkeys(c.target for c in CONVERSIONS if c.source != c.target):
        print(f"\nto {target}")
        rows = []
        for c in CONVERSIONS:
            if c.target == target and c.source != target:
                takes = ", ".join(p.option + (" (needed)" if p.required else "") for p in c.parameters)
                rows.append((f"from {c.source}", c.summary + (f"; {takes}" if takes else "")))
        print(columns(rows, "  "))
    print()
    print(wrapped("to its own format: without the rows that cannot be used; --scale-labels LOW,HIGH for scores and grades"))
    print(wrapped("qrels: judgements (query_id, doc_id, score) with --corpus FILE and --queries FILE."))
    print()


def plugins(as_json: Json = False) -> None:
    """List the plugins, with the reason where one could not be loaded."""
    from embedloss.plugins import plugin_manager

    found = plugin_manager().plugins
    if as_json:
        print_json([plugin.to_json() for plugin in found])
        return
    if not found:
        print("No plugin is installed. Type: pip install 'embedloss[all]'")
        return
    rows = []
    for plugin in found:
        what = f"{len(plugin.losses)} loss{'es' * (len(plugin.losses) != 1)}" if plugin.status == "loaded" else plugin.status
        detail = "; ".join([*([plugin.reason] if plugin.reason else []), *plugin.warnings])
        rows.append((f"{plugin.distribution} {plugin.version}".strip(), what + (f": {detail}" if detail else "")))
    print(columns(rows, "", 40))


def explain(code: Annotated[str, typer.Argument(metavar="CODE", help="Such as E101.")], as_json: Json = False) -> None:
    """Explain an error code.

    Example: embedloss explain E101
    """
    import difflib

    from embedloss.errors import EXPLANATIONS

    key = code.strip().upper()
    if key not in EXPLANATIONS:
        near = difflib.get_close_matches(key, EXPLANATIONS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise typer.BadParameter(f"there is no code '{code}'.{hint} Codes: {', '.join(EXPLANATIONS)}")
    found = EXPLANATIONS[key]
    if as_json:
        print_json({"code": key, "title": found.title, "text": found.text})
        return
    print(f"{key}: {found.title}\n")
    print(wrapped(" ".join(found.text.split()), "", min(width(), 100), hang=""))


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("list", rich_help_panel=PANEL)(list_losses)
    for command in (show, formats, plugins, explain):
        app.command(rich_help_panel=PANEL)(command)
