"""One self-contained HTML page that compares runs: no network, no script library, light and dark."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from embedloss.reporting.runs import Run, is_count
from embedloss.reporting.style import STYLE
from embedloss.reporting.svg import line_chart, number

NONE = "\u2013"
# Settings that name places or how the work was done, and not what is learned.
PLACES = {"out", "resume", "overwrite", "workers", "plugins", "logging_steps", "report_to"}


def write_page(runs: Sequence[Run], out: str | Path) -> Path:
    """Write the page.

    Args:
        runs: one or more; their names are made different here.
        out: the file.

    Returns:
        The file.
    """
    name_apart(runs)
    file = Path(out)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(runs), encoding="utf-8")
    return file


def name_apart(runs: Sequence[Run]) -> None:
    """Give runs of the same folder name the name of the folder above as well."""
    depth = 1
    while len({run.name for run in runs}) < len(runs) and depth < 4:
        depth += 1
        for run in runs:
            run.name = "/".join(run.folder.resolve().parts[-depth:])
    if len({run.name for run in runs}) < len(runs):
        for place, run in enumerate(runs, start=1):
            run.name = f"{place}: {run.name}"


def page(runs: Sequence[Run]) -> str:
    """The page as text."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    sections = [_metrics(runs), _charts(runs), _settings(runs), _neighbours(runs), _again(runs)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><main><header><h1>{escape(title)}</h1>{_legend(runs)}</header>{''.join(s for s in sections if s)}"
        "</main></body></html>\n"
    )


def _section(title: str, body: str, note: str = "") -> str:
    said = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{said}{body}</section>" if body else ""


def _legend(runs: Sequence[Run]) -> str:
    items = []
    for colour, run in enumerate(runs):
        facts = [str(run.config.get("loss") or "a loss for each data set")]
        model = str(run.config.get("model", ""))
        facts.append(Path(model).name if model.count("/") > 1 or model.startswith((".", "~")) else model)
        length = (
            f"{run.steps:,} steps" if run.steps else f"{int(run.entries[-1]['step']):,} steps so far" if run.entries else ""
        )
        facts.append(length + (f" in {_duration(run.seconds)}" if run.seconds else ""))
        loss, *rest = [escape(fact) for fact in facts]
        said = " · ".join(fact for fact in rest if fact)
        items.append(
            f'<li><span class="swatch c{colour % 8}"></span><div><b>{escape(run.name)}</b>'
            f"<code>{loss}</code><small>{said}</small></div></li>"
        )
    return f'<ul class="runs">{"".join(items)}</ul>'


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


# -- metrics -----------------------------------------------------------------------------------------------------------
def _metrics(runs: Sequence[Run]) -> str:
    names = dict.fromkeys(n for run in runs for n, v in run.after.items() if not is_count(n, v))
    if not names:
        return ""
    rows = []
    for name in names:
        values = [run.after.get(name) for run in runs]
        known = [v for v in values if v is not None]
        best = (min if name.startswith("mse") else max)(known) if len(runs) > 1 and len(set(known)) > 1 else None
        cells = []
        for run, value in zip(runs, values, strict=True):
            if value is None:
                cells.append(f'<td class="none">{NONE}</td>')
                continue
            before = run.before.get(name)
            change = "" if before is None else _change(value - before, name.startswith("mse"))
            started = "" if before is None else f"<small>{before:.4f}</small> "
            strong = ' class="best"' if value == best else ""
            cells.append(f'<td{strong}>{started}<span class="value">{value:.4f}</span>{change}</td>')
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    note = "Before training in small, then after it, and the change."
    if any(run.best for run in runs):
        kept = [
            f"{escape(run.name)} kept step {run.best['step']:,} ({escape(str(run.best['metric']))})" for run in runs if run.best
        ]
        note += " " + "; ".join(kept) + "."
    return _section("Evaluation", _table(runs, rows), note)


def _change(delta: float, lower: bool) -> str:
    kind = "same" if abs(delta) < 5e-5 else "up" if (delta > 0) != lower else "down"
    return f'<span class="{kind}">{"&plusmn;" if kind == "same" else "+" if delta > 0 else "&minus;"}{abs(delta):.4f}</span>'


def _table(runs: Sequence[Run], rows: Sequence[str], kind: str = "numbers") -> str:
    heads = "".join(f'<th><span class="swatch c{i % 8}"></span>{escape(run.name)}</th>' for i, run in enumerate(runs))
    body = f"<thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{body}</table></div>'


# -- curves ------------------------------------------------------------------------------------------------------------
def _charts(runs: Sequence[Run]) -> str:
    main = [("Loss", "loss")]
    metrics = list(dict.fromkeys(n for run in runs for n in run.evaluations() if len(run.series(n)) > 1))
    chosen = {f"eval_{run.best['metric'] if run.best else run.primary}" for run in runs}
    metrics.sort(key=lambda n: n not in chosen)
    main += [(n.removeprefix("eval_"), n) for n in metrics[:2]]
    main += [("Learning rate", "learning_rate")]
    more = [(n.removeprefix("eval_"), n) for n in metrics[2:]]
    terms = list(dict.fromkeys(n for run in runs for n in run.term_names()))
    more += [(n, n) for n in terms] + [("Gradient norm", "grad_norm")]
    more += [(n, n) for n in dict.fromkeys(k for run in runs for e in run.entries for k in e) if n.startswith("probe/")]
    body = _grid(runs, main)
    rest = _grid(runs, more)
    folded = f"<details><summary>More curves</summary>{rest}</details>" if rest else ""
    return _section("Curves", body + folded, "Over optimizer steps. Points show their values when the pointer rests on them.")


def _grid(runs: Sequence[Run], names: Sequence[tuple[str, str]]) -> str:
    cards = []
    for title, name in names:
        lines = [(run.name, i % 8, run.series(name)) for i, run in enumerate(runs)]
        marks = [(i % 8, run.best["step"]) for i, run in enumerate(runs) if run.best and name == f"eval_{run.best['metric']}"]
        chart = line_chart(lines, marks=marks, title=f"{title} over steps")
        if chart:
            cards.append(f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>")
    return f'<div class="grid">{"".join(cards)}</div>' if cards else ""


# -- settings ----------------------------------------------------------------------------------------------------------
def _settings(runs: Sequence[Run]) -> str:
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    shown = {key: [_value(run.config.get(key)) for run in runs] for key in keys}
    versions = list(dict.fromkeys(name for run in runs for name in run.versions))
    shown |= {f"version of {name}": [run.versions.get(name, NONE) for run in runs] for name in versions}
    packages = {f"version of {name}" for name in versions}
    differ = []
    for key, values in shown.items():
        # A package that only some runs need is no difference.
        known = [v for v in values if not (key in packages and v == NONE)]
        if len(set(known)) > 1 and key not in PLACES:
            differ.append(key)
    equal = [key for key in shown if key not in differ and key not in PLACES and shown[key][0] not in ("", NONE)]
    rows = [f"<tr><th>{escape(key)}</th>{''.join(f'<td>{escape(v)}</td>' for v in shown[key])}</tr>" for key in differ]
    body = _table(runs, rows, "texts") if rows else ""
    if len(runs) > 1 and not rows:
        body = '<p class="note">None: the runs have equal settings and versions.</p>'
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(shown[key][0])}</dd>" for key in equal)
    title = "Equal settings" if len(runs) > 1 else "All settings"
    body += f"<details><summary>{title}</summary><dl>{facts}</dl></details>" if facts else ""
    return _section("Settings that differ" if len(runs) > 1 else "Settings", body)


def _value(value: Any) -> str:
    if value is None or value in ({}, []):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return number(value) if isinstance(value, float) else str(value)


# -- neighbours --------------------------------------------------------------------------------------------------------
def _neighbours(runs: Sequence[Run]) -> str:
    queries = list(dict.fromkeys(e["query"] for run in runs for e in run.neighbours.get("after") or []))
    blocks = []
    for place, query in enumerate(queries):
        starts = [_found(run, "before", query) for run in runs]
        cards = []
        if len(runs) > 1 and starts[0] is not None and all(start == starts[0] for start in starts):
            cards.append(_list("before training, all runs", starts[0]))
            starts = [None] * len(runs)
        for colour, (run, start) in enumerate(zip(runs, starts, strict=True)):
            label = f'<span class="swatch c{colour % 8}"></span>{escape(run.name)}, '
            cards += [_list(label + "before", start), _list(label + "after", _found(run, "after", query))]
        is_open = " open" if place < 3 else ""
        blocks.append(
            f"<details{is_open}><summary>{escape(_cut(query, 160))}</summary>"
            f'<div class="lists">{"".join(cards)}</div></details>'
        )
    note = "The nearest of some texts of the evaluation data; a text that belongs to the query is marked."
    return _section(
        "Nearest neighbours before and after", f'<div class="queries">{"".join(blocks)}</div>' if blocks else "", note
    )


def _found(run: Run, moment: str, query: str) -> dict[str, Any] | None:
    return next((e for e in run.neighbours.get(moment) or [] if e["query"] == query), None)


def _list(label: str, found: Mapping[str, Any] | None) -> str:
    """One list of texts; `label` is HTML."""
    if found is None:
        return ""
    own = set(found.get("own") or [])
    items = "".join(
        f'<li class="{"own" if text in own else ""}"><span>{float(score):.3f}</span>{escape(_cut(text))}</li>'
        for text, score in found["found"]
    )
    return f'<div class="list"><h4>{label}</h4><ol>{items}</ol></div>'


def _cut(text: str, most: int = 220) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _again(runs: Sequence[Run]) -> str:
    found = [run for run in runs if (run.folder / "manifest.json").is_file()]
    lines = "\n".join(
        f"embedloss train {shlex.quote(str(run.folder / 'manifest.json'))} --out {shlex.quote(str(run.folder) + '-again')}"
        for run in found
    )
    return _section("Repeat", f"<pre>{escape(lines)}</pre>" if lines else "")
