"""Formats numbers for readers: counts, times, and the one-line summary of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping


def short_count(value: float) -> str:
    """Three significant digits with a unit: 812, 13.2k, 1.05M, 7.24G."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def clock(seconds: float) -> str:
    """Seconds as M:SS or H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def per_source(metrics: Mapping[str, float], figure: str) -> dict[str, float]:
    """Values of ``eval/<source>/<figure>`` by source name."""
    ending = f"/{figure}"
    return {
        name.removeprefix("eval/").removesuffix(ending): value
        for name, value in metrics.items()
        if name.startswith("eval/") and name.endswith(ending) and name != f"eval{ending}"
    }


def eval_line(metrics: Mapping[str, float]) -> str:
    """The evaluation in ``metrics`` as one line; an empty string without an evaluation."""
    parts = [f"held-out loss {metrics['eval/loss']:.4f}"] if "eval/loss" in metrics else []
    matches = per_source(metrics, "exact_match")
    if matches:
        by_name = ", ".join(f"{name} {value:.0%}" for name, value in sorted(matches.items()))
        mean = sum(matches.values()) / len(matches)
        parts.append(f"exact match {mean:.0%} ({by_name})" if len(matches) > 1 else f"exact match {by_name}")
    return ", ".join(parts)
