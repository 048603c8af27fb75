"""The table of ``data_engine``: what reading costs, and what was found in the samples that came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.data_corpus import SEQ_LEN

if TYPE_CHECKING:
    from benchmarks.data_engine import Found

Steps = Sequence[Any]
"""Of each step, the (source, row) pairs."""


def show(found: Mapping[str, Found], console: Console) -> None:
    """A column for each loader, and the versions."""
    table = Table(title="Data engine: one rank, medians (range)", title_justify="left")
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    cells = [costs(each) | checks(each) for each in found.values()]
    for label in cells[0]:
        table.add_row(label, *(each[label] for each in cells))
    console.print(table)
    for name, each in found.items():
        console.print(f"{name}: {', '.join(f'{package} {version}' for package, version in each.versions.items())}")


def costs(found: Found) -> dict[str, str]:
    """Rates count real tokens: what packers make into whole rows, and what the others hand out sample by sample."""
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
    """Steps with the same samples as those of a run that was not stopped, or on one rank; and an epoch on 3 ranks."""
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
    """How many steps hold the very same samples, and in words; if not all do, what they have in common."""
    same = sum(a == b for a, b in zip(wanted, got, strict=False))
    expected = {tuple(pair) for step in wanted for pair in step}
    common = len(expected & {tuple(pair) for step in got for pair in step}) / len(expected)
    words = f"{same} of {len(wanted)}"
    return same, words if same == len(wanted) else f"{words}; {common:.0%} of samples"
