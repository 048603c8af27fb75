"""What the soak has seen, and its tables as they stand in docs/reliability.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.faults.judge import FAILED, LEDGER, UNEQUAL


@dataclass
class Tally:
    """What was seen of one variant."""

    runs: int = 0
    attacks: Counter[str] = field(default_factory=Counter)
    """Those that acted, by place."""
    resuming: int = 0
    """At the start of an attempt that had a checkpoint to continue from."""
    again: int = 0
    """Made twice in a row."""
    endings: Counter[str] = field(default_factory=Counter)
    """Of requests to stop."""
    slowest: float = 0.0
    """Seconds from an attack until all ranks were gone, the longest."""
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    """Everything that was not as it has to be, each with what repeats it."""

    def of(self, kind: str) -> int:
        return sum(count for place, count in self.attacks.items() if place.partition(".")[0] == kind)


def told(kills: Mapping[str, Tally], terms: Mapping[str, Tally], numbers: Mapping[str, int]) -> str:
    command = "make soak " + " ".join(f"{key.upper()}={value}" for key, value in numbers.items())
    parts = [f"`{command}`"]
    if numbers["kills"]:
        parts += [by_variant(kills), by_place(kills)]
    if numbers["terms"]:
        parts.append(by_ending(terms))
    return "\n\n".join(parts)


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [head, ("---",) * len(head), *rows])


def by_variant(kills: Mapping[str, Tally]) -> str:
    head = (
        "", "runs", "kills", "in checkpoints", "at start-up", "of them in a resume", "twice in a row",
        "failed resumes", "unequal fingerprints", "ledger differences", "others out after, s", "s per kill",
    )  # fmt: skip
    rows = [row_of(name, [tally]) for name, tally in kills.items()]
    return table(head, [*rows, row_of("all", [*kills.values()])])


def row_of(name: str, tallies: list[Tally]) -> tuple[object, ...]:
    count = sum(tally.attacks.total() for tally in tallies)
    wrong = [each for tally in tallies for each in tally.wrong]
    return (
        name,
        sum(tally.runs for tally in tallies),
        count,
        sum(tally.of("checkpoint") for tally in tallies),
        sum(tally.of("start") for tally in tallies),
        sum(tally.resuming for tally in tallies),
        sum(tally.again for tally in tallies),
        *(sum(kind in each for each in wrong) for kind in (FAILED, UNEQUAL, LEDGER)),
        f"{max(tally.slowest for tally in tallies):.1f}",
        f"{sum(tally.seconds for tally in tallies) / max(count, 1):.1f}",
    )


def by_place(kills: Mapping[str, Tally]) -> str:
    places = sum((tally.attacks for tally in kills.values()), Counter[str]())
    rows: list[tuple[object, ...]] = [
        ("anywhere, by time" if place == "time" else f"`{place}`", count) for place, count in sorted(places.items())
    ]
    return table(("killed at", "kills"), rows)


def by_ending(terms: Mapping[str, Tally]) -> str:
    endings = sum((tally.endings for tally in terms.values()), Counter[str]())
    rows: list[tuple[object, ...]] = [(ending, count) for ending, count in endings.most_common()]
    wrong = sum(len(tally.wrong) for tally in terms.values())
    slowest = max(tally.slowest for tally in terms.values())
    tail = f"All ranks were out {slowest:.1f} s after the signal at the latest; {wrong} were wrong."
    return table(("asked to stop", "runs"), rows) + "\n\n" + tail
