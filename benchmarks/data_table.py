"""The two tables of ``data_engine``: what reading costs, and what was found in the samples that came out."""

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
    """Both tables, and the versions."""
    console.print(table("Cost to one rank: medians", COSTS, {name: costs(each) for name, each in found.items()}))
    console.print(table("What came out", CHECKS, {name: checks(each) for name, each in found.items()}))
    for name, each in found.items():
        console.print(f"{name}: {', '.join(f'{package} {version}' for package, version in each.versions.items())}")


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Table:
    made = Table(title=title, title_justify="left")
    for column in ("", *columns):
        made.add_column(column, justify="right")
    for name, cells in rows.items():
        made.add_row(name, *cells)
    return made


COSTS = ("packed", "Mtokens/s", "spread", "first batch ms", "spread", "resume at 90% ms", "spread", "own memory MiB")


def costs(found: Found) -> list[str]:
    per_row = found.speeds[0]["per_row"]
    packed = f"{per_row / SEQ_LEN:.1%}" if per_row > SEQ_LEN / 2 else "no"
    rates = [each["rate"] / 1e6 for each in found.speeds]
    firsts = [each["first_ms"] for each in found.speeds]
    resumes = [each["resume_ms"] for each in found.resumes]
    memory = median(each["mib"] for each in found.speeds)
    return [packed, *middle(rates, 2), *middle(firsts, 0), *middle(resumes, 0), f"{memory:.0f}"]


def middle(values: Sequence[float], digits: int) -> list[str]:
    return [f"{median(values):,.{digits}f}", f"{min(values):,.{digits}f} to {max(values):,.{digits}f}"]


CHECKS = ("after a resume", "on 2 ranks", "on 4 ranks", "lost", "repeated", "steps of each of 3 ranks")


def checks(found: Found) -> list[str]:
    """Steps with the same samples as those of a run that was not stopped, or on one rank; and an epoch on 3 ranks."""
    alone = merged(found.ranks[1])
    resumed = min((agreement(found.wanted, each["next"]) for each in found.resumes), key=lambda cell: cell[0])
    others = [agreement(alone, merged(found.ranks[world])) for world in (2, 4)]
    uses = Counter(tuple(pair) for rank in found.once for step in rank for pair in step)
    repeated = sum(uses.values()) - len(uses)
    lengths = [str(len(rank)) for rank in found.once]
    return [*(text for _, text in (resumed, *others)), str(found.rows - len(uses)), str(repeated), ", ".join(lengths)]


def merged(ranks: Sequence[Steps]) -> list[list[Any]]:
    """The global batch of every step: the samples of all ranks, sorted."""
    return [sorted(pair for step in steps for pair in step) for steps in zip(*ranks, strict=True)]


def agreement(wanted: Steps, got: Steps) -> tuple[int, str]:
    """How many steps hold the very same samples, and in words; if not all do, what they have in common."""
    same = sum(a == b for a, b in zip(wanted, got, strict=False))
    expected = {tuple(pair) for step in wanted for pair in step}
    common = len(expected & {tuple(pair) for step in got for pair in step}) / len(expected)
    words = f"{same} of {len(wanted)}"
    return same, words if same == len(wanted) else f"{words} ({common:.0%} of the samples)"
