"""A picture of ``launch plan --sweep``: memory per process in its parts, and tokens per second, over the values."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conf.errors import ConfigError, Unavailable
from launch.plan.sweep import Point
from launch.plan.table import PARTS, count, parts
from train.plan import GIB

COLOURS = ("#0072b2", "#e69f00", "#d55e00", "#cc79a7", "#56b4e9", "#009e73", "#999999")
"""Of PARTS; told apart by the colour-blind too (Okabe and Ito 2008)."""
INK = "#333333"


def plot(key: str, points: Sequence[Point], path: Path) -> None:
    """A PNG of ``points``, the values of ``key``. Raises Unavailable without matplotlib, ConfigError without a plan."""
    try:
        import matplotlib
    except ImportError:
        raise Unavailable("--plot needs matplotlib: pip install -c constraints.txt matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = next((point.answer for point in points if point.answer), None)
    if first is None:
        raise ConfigError("--plot: no value of the sweep has a plan, so there is nothing to draw")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    figure.suptitle(f"{first.cfg.name}: {count(first.found.parameters)} parameters", fontsize=12)
    _draw_memory(left, points, first.found.gpu_memory_gib)
    _draw_speed(right, points)
    for axes in (left, right):
        axes.set_xlabel(key.rsplit(".", 1)[-1])
        axes.set_xlim(-0.6, len(points) - 0.4)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_memory(axes: Any, points: Sequence[Point], limit_gib: float) -> None:
    """Stacked bars with their sums, and the memory of a GPU."""
    bars = [(place, point.answer.found.chosen) for place, point in enumerate(points) if point.answer]
    places, bottom = [place for place, _ in bars], [0.0] * len(bars)
    for part, colour in zip(PARTS, COLOURS, strict=True):
        heights = [parts(memory)[part] / GIB for _, memory in bars]
        if max(heights) >= limit_gib / 1000:  # what would not be seen needs no place in the legend
            axes.bar(places, heights, bottom=bottom, label=part, color=colour, width=0.7)
        bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
    for place, total in zip(places, bottom, strict=True):
        axes.annotate(f"{total:.1f}", (place, total), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    for place, point in enumerate(points):
        if point.answer is None:
            axes.annotate("no plan", (place, 0), (0, 4), textcoords="offset points", ha="center", fontsize=8, color=INK)
    axes.axhline(limit_gib, color=INK, linestyle="--", linewidth=1)
    axes.annotate(f"a GPU has {limit_gib:g}", (-0.55, limit_gib), (0, 3), textcoords="offset points", fontsize=8)
    axes.set(title="memory per process at its peak", ylabel="GiB", ylim=(0, 1.1 * max(limit_gib, *bottom)))
    axes.set_xticks(range(len(points)), [_label(point) for point in points])
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )  # beside the bars, in their order


def _label(point: Point) -> str:
    return point.value if point.answer is None else f"{point.value}\nZeRO-{point.answer.found.stage}"


def _draw_speed(axes: Any, points: Sequence[Point]) -> None:
    """The estimated speed and its range; a value without an estimate is labelled."""
    axes.set(title="tokens per second, all processes", yscale="log")
    axes.set_xticks(range(len(points)), [point.value for point in points])
    found = [(place, point.answer.found) for place, point in enumerate(points) if point.answer]
    fast = [(place, plan.world, plan.speed) for place, plan in found if not isinstance(plan.speed, str)]
    if not fast:
        reason = next(plan.speed for _, plan in found if isinstance(plan.speed, str))
        axes.yaxis.set_visible(False)
        axes.text(0.5, 0.5, textwrap.fill(reason, 44), transform=axes.transAxes, ha="center", color=INK)
        return
    places = [place for place, _, _ in fast]
    low, middle, high = (
        [getattr(speed, name) * world for _, world, speed in fast]
        for name in ("low", "tokens_per_second_per_gpu", "high")
    )
    axes.fill_between(places, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label="bracket")
    axes.plot(places, middle, color=COLOURS[0], marker="o", markersize=4)
    for place, rate in zip(places, middle, strict=True):
        axes.annotate(f"{rate:,.0f}", (place, rate), (0, 8), textcoords="offset points", ha="right", fontsize=8)
    for place in set(range(len(points))) - set(places):
        axes.annotate("no figure", (place, low[0]), ha="center", fontsize=8, color=INK)
    axes.set_ylim(0.6 * min(low), 2 * max(high))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
