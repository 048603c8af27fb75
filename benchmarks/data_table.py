"""The table of ``data_engine``: the costs of reading, and the checks on the samples that the loaders returned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.data_corpus import SEQ_LEN

Steps = Sequence[Any]
"""The (source, sample number) pairs of every step."""


@dataclass
class Found:
    """The measurements of one loader; a step is a list of (source, sample number) pairs."""

    versions: dict[str, str]
    rows: int
    """Samples of the small corpus."""
    speeds: list[dict[str, float]] = field(default_factory=list)
    resumes: list[dict[str, Any]] = field(default_factory=list)
    begin: list[Any] = field(default_factory=list)
    """The first ten steps on one rank."""
    after: list[Any] = field(default_factory=list)
    """The ten steps after 90% of an epoch, from a loader that was not stopped."""
    ranks: dict[int, list[list[Any]]] = field(default_factory=dict)
    """Number of ranks -> the first ten steps of each rank."""
    once: list[list[Any]] = field(default_factory=list)
    """All steps of each of three ranks."""


def show(found: Mapping[str, Found], console: Console) -> None:
    """Print a table with a column per loader, and the versions."""
    table = Table(title="Data engine: one rank, medians (range)", title_justify="left")
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    columns = [costs(figures) | checks(figures) for figures in found.values()]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    console.print(table)
    for name, figures in found.items():
        console.print(f"{name}: {', '.join(f'{package} {version}' for package, version in figures.versions.items())}")


def costs(found: Found) -> dict[str, str]:
    """Rates count real tokens, without padding, in the rows of packers and in the samples of other loaders."""
    per_row = found.speeds[0]["per_row"]
    return {
        "rows filled": f"{per_row / SEQ_LEN:.1%}" if per_row > SEQ_LEN / 2 else "not packed",
        "million tokens/s": middle([each["rate"] / 1e6 for each in found.speeds], 2),
        "first batch, ms": middle([each["first_ms"] for each in found.speeds], 0),
        "resume at 90%, ms": middle([each["resume_ms"] for each in found.resumes], 0),
        "own memory, MiB": middle([each["mib"] for each in found.speeds], 0),
    }


def middle(values: Sequence[float], digits: int) -> str:
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def checks(found: Found) -> dict[str, str]:
    """Compare steps after a resume with a run that was not stopped, steps on ranks with one rank; check an epoch."""
    resumed = min((agreement(found.after, each["next"]) for each in found.resumes), key=lambda each: each[0])
    uses = Counter(tuple(pair) for rank in found.once for step in rank for pair in step)
    return {
        "same after a resume": resumed[1],
        **{f"same on {world} ranks": agreement(found.begin, merged(each))[1] for world, each in found.ranks.items()},
        "epoch: lost, repeated": f"{found.rows - len(uses)}, {sum(uses.values()) - len(uses)}",
        "epoch: steps per rank": ", ".join(str(len(rank)) for rank in found.once),
    }


def merged(ranks: Sequence[Steps]) -> list[list[Any]]:
    """The global batch of every step: the samples of all ranks, sorted."""
    return [sorted(pair for step in steps for pair in step) for steps in zip(*ranks, strict=True)]


def agreement(wanted: Steps, got: Steps) -> tuple[int, str]:
    """The number of steps with exactly the same samples, and a text; unless all agree, it adds the share in common."""
    same = sum(a == b for a, b in zip(wanted, got, strict=False))
    expected = {tuple(pair) for step in wanted for pair in step}
    common = len(expected & {tuple(pair) for step in got for pair in step}) / len(expected)
    words = f"{same} of {len(wanted)}"
    return same, words if same == len(wanted) else f"{words}; {common:.0%} of samples"
