"""Another order of samples in the middle of a run: what is kept of the old one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.stream.order import same_window
from data_prep.stream.phases import Phase


@dataclass(frozen=True)
class Change:
    phases: list[Phase]
    """The phases with which the schedule continues."""
    finishes_window: bool
    """Whether the open window is finished as it was begun."""
    retained: dict[str, int]
    """Counters of removed sources, kept in case they return."""


def carry_over(
    state: Mapping[str, Any], plan: Mapping[str, Any], opening: Callable[[int, Sequence[int]], Phase]
) -> Change:
    """The old counters under the new ``plan``; ``opening`` makes the phase of the new shares at a draw and counters.

    If the rows of the open window are still the same, the window is finished as it was begun, and then the shares
    change. If they are not, the window is planned again under the new settings, and as many of its rows are skipped as
    were used: at most one window then repeats or omits samples. New sources start at 0.
    """
    names, now = list(state["plan"]["data.sources"]), list(plan["data.sources"])
    start, base, shares = state["phases"][0]
    old = Phase(start, tuple(base), tuple(shares))
    drawn = [name for name, share in zip(names, shares, strict=True) if share]
    finish = state["stop"] is not None and same_window(state["plan"], plan, drawn)
    edge = state["stop"] if finish else state["start"]
    known = state["retained"] | dict(zip(names, old.counts(edge), strict=True))
    new = opening(edge, [known.get(name, 0) for name in now])
    retained = {name: count for name, count in known.items() if name not in now}
    if not finish:
        return Change([new], False, retained)
    was = dict(zip(names, zip(base, shares, strict=True), strict=True))
    kept = [was.get(name, (known.get(name, 0), 0)) for name in now]
    begun = Phase(start, tuple(count for count, _ in kept), tuple(share for _, share in kept))
    return Change([begun, new], True, retained)
