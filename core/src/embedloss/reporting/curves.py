"""curves.png of one run: the loss, its terms, the learning rate and the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedloss.reporting.runs import Points, Run

COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#dc2626")
INK, FAINT, GRID = "#1f2937", "#6b7280", "#e5e7eb"
MOST_LINES = 8


def panels_of(run: Run, primary: str | None = None) -> list[tuple[str, dict[str, Points]]]:
    """(title, name -> points) of every panel that has something to show."""
    terms = {name: run.series(name) for name in run.term_names()[:MOST_LINES]}
    metrics = sorted(run.evaluations(), key=lambda n: n.removeprefix("eval_") != primary)
    shares = [n for n in metrics if all(-1 <= value <= 1 for _, value in run.series(n))]
    panels: list[tuple[str, dict[str, Points]]] = [
        ("Loss", {"total": run.series("loss")}),
        ("Terms, before their weights", terms if len(terms) > 1 else {}),
        ("Evaluation", {n.removeprefix("eval_"): run.series(n) for n in (shares or metrics)[:5]}),
        ("Learning rate", {"learning rate": run.series("learning_rate")}),
    ]
    return [(title, {n: p for n, p in lines.items() if p}) for title, lines in panels if any(lines.values())]


def draw_curves(run: Run, picture: Path) -> bool:
    """Draw a run. False, and no file, if nothing was logged; ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    panels = panels_of(run, (run.best or {}).get("metric") or run.primary)
    if not panels:
        return False
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.4 * columns, 3.3 * rows + 0.7), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.06)
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    title = str(run.config.get("loss") or run.name)
    figure.suptitle(title if len(title) < 90 else title[:87] + "...", fontsize=11, color=INK, x=0.012, ha="left", weight="bold")
    for axes, (name, lines) in zip(grid, panels, strict=False):
        _panel(axes, name, lines, run)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if name == "Learning rate":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}" if value else "0"))
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.savefig(picture)
    return True


def _panel(axes: Any, title: str, lines: dict[str, Points], run: Run) -> None:
    axes.set_title(title, fontsize=9.5, color=INK, loc="left", pad=8)
    for place, (name, points) in enumerate(lines.items()):
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) <= 25 else None
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(steps, values, color=colour, lw=1.6, marker=marker, ms=3.2, label=name, solid_capstyle="round", clip_on=False)
    if title == "Evaluation" and run.best:
        axes.axvline(run.best["step"], color=FAINT, lw=0.9, ls=(0, (3, 3)), zorder=0)
        axes.annotate(
            "kept", (run.best["step"], 1), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
            fontsize=7.5, color=FAINT, va="top",
        )  # fmt: skip
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    axes.set_xlabel("optimizer step", fontsize=8, color=FAINT)
    axes.margins(x=0.02, y=0.12)
    if len(lines) > 1:
        axes.legend(fontsize=7.5, frameon=False, labelcolor=INK, handlelength=1.4)
