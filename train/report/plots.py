"""Line plots as inline SVG: axes with round numbers, one polyline per series, colours from the page's style sheet."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

from conf.safety.texts import for_html
from train.tracking.figures import short_count

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 30
COLOURS = 7
MAX_POINTS = 480
"""More points than the plot has columns would only add bytes."""


def line_plot(
    series: Mapping[str, Points],
    *,
    show: Sequence[float] = (),
    percent: bool = False,
    dots: bool = False,
    faint: Sequence[str] = (),
) -> str:
    """An ``<svg>`` of ``series`` over the step; an empty string if no series has a point.

    ``show``: values that the vertical axis includes; ``dots`` marks every point; ``faint``: series to draw faintly.
    """
    shown = {name: thinned(points) for name, points in series.items() if points}
    if not shown:
        return ""
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    x_ticks = ticks(min(xs), max(xs), whole=True)
    y_ticks = ticks(min([*ys, *show]), max([*ys, *show]))
    axes = Axes(min(xs), max(xs), min(y_ticks[0], *ys), max(y_ticks[-1], *ys))
    parts = [grid(axes, x_ticks, y_ticks, percent)]
    for index, (name, points) in enumerate(shown.items()):
        parts.append(drawn(axes, name, points, style_of(index, name in faint), dots))
    label = for_html(", ".join(shown))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label} over steps">{"".join(parts)}</svg>'


class Axes:
    """Converts data to pixels."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        self.x_low, self.x_span = x_low, (x_high - x_low) or 1.0
        self.y_low, self.y_span = y_low, (y_high - y_low) or 1.0

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x_low) / self.x_span

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.y_low) / self.y_span


def grid(axes: Axes, x_ticks: Sequence[float], y_ticks: Sequence[float], percent: bool) -> str:
    parts = []
    for value in y_ticks:
        y = axes.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = f"{value:.0%}" if percent else number(value)
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">{text}</text>')
    for value in x_ticks:
        parts.append(f'<text x="{axes.x(value):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{number(value)}</text>')
    return "".join(parts)


def drawn(axes: Axes, name: str, points: Points, style: str, dots: bool) -> str:
    pixels = [(axes.x(x), axes.y(y)) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
    line = f'<polyline class="{style}" points="{path}"/>' if len(pixels) > 1 else ""
    if not dots and len(pixels) > 1:
        return line
    marks = [
        f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{for_html(name)}, step {step:g}: {value:.4g}'
        "</title></circle>"
        for (x, y), (step, value) in zip(pixels, points, strict=True)
    ]
    return line + "".join(marks)


def style_of(index: int, faint: bool = False) -> str:
    """Style classes of the series at ``index``: a colour, and dashes once all colours are used."""
    return f"c{index % COLOURS}" + (" dashed" if index >= COLOURS else "") + (" faint" if faint else "")


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most MAX_POINTS points that keep every peak: the smallest and largest value of every interval."""
    if len(points) <= MAX_POINTS:
        return list(points)
    kept: list[tuple[float, float]] = []
    size = math.ceil(2 * len(points) / (MAX_POINTS - 2))
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return [points[0], *kept, points[-1]]


def smoothed(points: Points, window: int) -> list[tuple[float, float]]:
    """Exponential mean with time constant ``window`` points, bias-corrected (Kingma and Ba 2015, section 3)."""
    keep = 1.0 - 1.0 / max(1, window)
    total, weight, means = 0.0, 0.0, []
    for x, y in points:
        total, weight = keep * total + (1 - keep) * y, keep * weight + (1 - keep)
        means.append((x, total / weight))
    return means


def ticks(low: float, high: float, *, whole: bool = False, count: int = 5) -> list[float]:
    """About ``count`` round numbers (1, 2, 2.5 or 5 times a power of ten) that span ``low`` to ``high``.

    ``whole``: only whole numbers inside the span, for steps.
    """
    span = (high - low) or abs(high) or 1.0
    raw = max(span / (count - 1), sys.float_info.min)  # the quotient of a subnormal span may be 0
    power = 10.0 ** math.floor(math.log10(raw))
    size = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999)
    if whole:
        size = max(1.0, round(size))
        return [index * size for index in range(math.ceil(low / size), math.floor(high / size) + 1)]
    return [index * size for index in range(math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9) + 1)]


def number(value: float) -> str:
    """An axis label: 0.5, 12, 30k, 2e-05."""
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.4g}"
    return short_count(value) if abs(value) >= 1000 else f"{value:.1e}".replace(".0e", "e")
