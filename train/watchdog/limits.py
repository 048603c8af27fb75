"""When silence is a hang, and whose it is. Pure functions of what was seen of the ranks of a node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from train.watchdog.board import Phase, Place
from train.watchdog.processes import STATES

HOUR = 3600.0
LIMITS = {
    # Another rank may download a base or hash hundreds of gigabytes, as long as CONTROL_TIMEOUT of the ranks lets it.
    Phase.START: 6 * HOUR,
    Phase.FIRST_STEP: HOUR / 2,
    Phase.COMPILATION: HOUR / 2,
    # Between two signs of life: a batch, or a token of the answers.
    Phase.EVALUATION: HOUR / 2,
    # Terabytes through a busy file system.
    Phase.CHECKPOINT: 2 * HOUR,
    Phase.END: HOUR,
}
"""Seconds without a sign of life, by phase; a step's limit is measured."""
TIMES_P99 = 3.0
WHERE = {
    Place.READING: "waiting for its rows",
    Place.COMPUTING: "computing",
    Place.UPDATING: "updating the weights or waiting for the others",
    Place.REPORTING: "writing metrics after the step",
}


@dataclass(frozen=True)
class Seen:
    """What is known of a living rank."""

    rank: int
    pid: int
    phase: Phase
    place: Place
    step: int
    """Last completed."""
    position: int
    quiet: float
    """Seconds since its last sign of life."""
    stopped: float
    """Seconds since it is in state T."""
    state: str
    """The letter of /proc."""

    @property
    def where(self) -> str:
        """Where it is, as words for a sentence."""
        if self.phase in (Phase.STEP, Phase.FIRST_STEP) and self.place in WHERE:
            step = self.step if self.place is Place.REPORTING else self.step + 1
            return f"at step {step}, {WHERE[self.place]}"
        if self.phase is Phase.START:
            return "at the start"
        return f"in the phase {self.phase.name.lower().replace('_', ' ')} after step {self.step}"


@dataclass(frozen=True)
class Hang:
    ranks: tuple[int, ...]
    """Who is behind the others of this node."""
    text: str
    """A sentence without its host."""


def p99(times: Sequence[float]) -> float:
    """The 99th percentile, nearest rank; 0 without times."""
    return sorted(times)[math.ceil(0.99 * len(times)) - 1] if times else 0.0


def limit_of(phase: Phase, times: Sequence[float], minimum: float) -> float:
    """Seconds without a sign of life that are allowed in ``phase``. ``times``: of the last steps, of all ranks."""
    measured = max(TIMES_P99 * p99(times), minimum)
    return max(LIMITS[phase], measured) if phase in LIMITS else measured


def find_hang(ranks: Sequence[Seen], times: Sequence[float], minimum: float) -> Hang | None:
    """The hang of a node, if there is one.

    A rank that is stopped for ``minimum`` seconds hangs, in any phase. Silence is judged of the ranks that are behind
    all others, because the others wait for them: only if each of those is silent beyond the limit of its phase.
    """
    stopped = [each for each in ranks if each.stopped >= minimum]
    if stopped:
        said = "; ".join(f"rank {each.rank} (process {each.pid}) {STATES['T']}, {each.where}" for each in stopped)
        return Hang(tuple(each.rank for each in stopped), f"{said}, since {stopped[0].stopped:.0f} s")
    last = min((each.position for each in ranks), default=0)
    behind = [each for each in ranks if each.position == last]
    if not behind or any(each.quiet < limit_of(each.phase, times, minimum) for each in behind):
        return None
    first = behind[0]
    allowed = limit_of(first.phase, times, minimum)
    silence = f"without a sign of life for {first.quiet:.0f} s, {first.where} ({allowed:.0f} s are allowed"
    silence += f": 3 x p99 of its steps, {minimum:.0f} s at least)" if first.phase is Phase.STEP else " in this phase)"
    who = tuple(each.rank for each in behind)
    if len(behind) == len(ranks) > 1:
        names = ", ".join(str(rank) for rank in who)
        return Hang(who, f"ranks {names} are {silence}; none is behind, so a rank elsewhere or a device holds them")
    said = "; ".join(f"rank {each.rank} (process {each.pid}, it {STATES.get(each.state, 'is')})" for each in behind)
    waiting = f"; {len(ranks) - len(behind)} more of this node wait for it" if len(ranks) > len(behind) else ""
    return Hang(who, f"{said} is {silence}{waiting}")
