"""Line charts as SVG text: no script, no network, colours from the page's variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from embedloss.reporting.runs import Points

WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 30
MOST_POINTS = 300


def line_chart(lines: Sequence[tuple[str, int, Points]], *, marks: Sequence[tuple[int, float]] = (), title: str = "") -> str:
    """An SVG of lines over optimizer steps.

    Args:
        lines: (name, number of its colour, points).
        marks: (number of a colour, step) of vertical lines.
        title: for screen readers.
    """
    lines = [(name, colour, thinned(points)) for name, colour, points in lines if points]
    xs = [x for _, _, points in lines for x, _ in points]
    ys = [y for _, _, points in lines for _, y in points]
    if not xs:
        return ""
    low, high = min(ys), max(ys)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    bottom = low - pad if low < 0 or low - pad > 0 else 0.0
    ticks = nice_ticks(bottom, high + pad)
    y0, y1 = min(bottom, ticks[0]), max(high + pad, ticks[-1])
    x0, x1 = min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    labels = tick_labels(ticks)
    for tick, label in zip(ticks, labels, strict=True):
        _, y = place(x0, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    for tick in nice_ticks(x0, x1, whole=True):
        x, _ = place(tick, y0)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{number(tick)}</text>')
    for colour, step in marks:
        x, _ = place(step, y0)
        parts.append(f'<line class="mark c{colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for name, colour, points in lines:
        placed = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="line c{colour}" points="{path}"/>')
        dots = list(zip(points, placed, strict=True))
        for (step, value), (x, y) in dots if len(dots) <= 40 else dots[-1:]:
            label = f"{escape(name)}: {number(value)} at step {number(step)}"
            parts.append(f'<circle class="dot c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{label}</title></circle>')
    return "".join([*parts, "</svg>"])


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """Means of neighbouring points where there are too many to be seen; the first and last stay."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [points[0], *means[1:-1], points[-1]]


def nice_ticks(low: float, high: float, most: int = 6, whole: bool = False) -> list[float]:
    """Round numbers within [low, high], about `most` of them, at least one."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= raw * (1 - 1e-9))
    if whole:
        step = max(math.ceil(step), 1)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)] or [low]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The ticks as text, all with as many decimals as the one that needs most."""
    largest = max(abs(tick) for tick in ticks)
    if largest < 1e-3 or largest >= 1e6:
        return [number(tick) for tick in ticks]
    decimals = max(len(f"{tick:.6f}".rstrip("0").partition(".")[2]) for tick in ticks)
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def number(value: float) -> str:
    """Short, and exact enough to be read off a chart."""
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    size = abs(value)
    return f"{value:.1e}".replace("e-0", "e-") if size < 1e-3 else f"{value:.4g}"
