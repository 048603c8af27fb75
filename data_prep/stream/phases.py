"""Stretches of draws over which the shares of the sources stay the same, and how many draws there are in all.

A phase ends at the exact draw at which a source reaches its ``max_epochs``; the other sources keep their proportions
and share the weight of that source. A mixture that was changed on resume also begins a phase. The counters never
start again: in a phase, source s has been drawn base_s + quota_s(t - start) times after t draws of the run.

An example: sources a and b have weights 2 and 1, and b retires after one draw. By the quota, draws 0 and 1 of the run
are one of a and one of b; the counter of b reaches its limit at 2 draws, so the phases are

    start 0   base (0, 0)   shares (1431655765, 715827883)   2/3 and 1/3 of 2^31
    start 2   base (1, 1)   shares (2147483648, 0)           everything is a's

and the counters after 0, 1, 2, 3, 4 draws are (0, 0), (1, 0), (1, 1), (2, 1), (3, 1): from draw 2 on, the base plus
the quota of the new shares after t - 2 draws. ``tests/data_prep/stream/test_worked_example.py`` holds these numbers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from threading import Lock

from conf.schema import StopConfig
from data_prep.stream.mixture import SHARES, Quota, whole_shares

Counts = Sequence[int]
"""Draws of each source so far, in the order of the sources."""


@dataclass(frozen=True)
class Phase:
    start: int
    """Draws of the run before it."""
    base: tuple[int, ...]
    """Draws of each source before it."""
    shares: tuple[int, ...]
    """Share of each source, summing to 2^31; 0: not drawn."""

    @cached_property
    def quota(self) -> Quota:
        return Quota(self.shares)

    @cached_property
    def only(self) -> int | None:
        """The source, if there is just one."""
        active = [source for source, share in enumerate(self.shares) if share]
        return active[0] if len(active) == 1 else None

    def counts(self, draws: int) -> list[int]:
        """Counters after ``draws`` >= start draws of the run."""
        if draws == self.start:
            return list(self.base)
        added = self.quota.counts(draws - self.start)
        return [before + here for before, here in zip(self.base, added, strict=True)]


class Schedule:
    """The phases of a run in order, computed as far as they are asked for, from any thread.

    ``weights`` are the fractions of the sources (0: left out). ``limits`` are the draws at which they retire (None:
    never). ``phases`` are the phases that do not follow from weights and limits: the current phase of a resumed run,
    and the phase of a changed mixture.
    """

    def __init__(self, weights: Sequence[Fraction], limits: Sequence[int | None], phases: Sequence[Phase] = ()) -> None:
        self.weights = weights
        self.limits = limits
        self._phases = list(phases) or [self.opening(0, [0] * len(weights))]
        self._given = len(self._phases)
        self._growing = Lock()
        self._last_end: int | None = self._natural_end(self._phases[-1])

    def opening(self, start: int, base: Counts) -> Phase:
        """The phase of all sources that are not yet retired at these counters; all its shares are 0 if every one is."""
        live = [
            weight if limit is None or count < limit else Fraction(0)
            for weight, limit, count in zip(self.weights, self.limits, base, strict=True)
        ]
        shares = whole_shares(live) if any(live) else [0] * len(live)
        return Phase(start, tuple(base), tuple(shares))

    def at(self, draw: int) -> tuple[Phase, int | None]:
        """The phase that holds this draw, and the draw at which it ends (None: never). Past the end: the last phase."""
        with self._growing:
            while self._last_end is not None and self._last_end <= draw:
                following = self.opening(self._last_end, self._phases[-1].counts(self._last_end))
                if not any(following.shares):
                    break
                self._phases.append(following)
                self._last_end = self._natural_end(following)
            position = self._position(draw)
            following_start = self._phases[position + 1].start if position + 1 < len(self._phases) else self._last_end
            return self._phases[position], following_start

    def counts(self, draws: int) -> list[int]:
        """Counters after ``draws`` draws of the run, O(sources).

        They do not change after every source is retired, nor before the first phase of this schedule.
        """
        phase, end = self.at(draws)
        return phase.counts(max(phase.start, draws if end is None else min(draws, end)))

    def phases_from(self, draw: int) -> list[Phase]:
        """The phase that holds ``draw``, and the given phases after it: the ``phases`` of a run that resumes there."""
        position = self._position(draw)
        return [self._phases[position], *self._phases[position + 1 : self._given]]

    def _position(self, draw: int) -> int:
        return max(0, bisect_right(self._phases, draw, key=lambda phase: phase.start) - 1)

    @property
    def possible(self) -> int | None:
        """Draws after which every source is retired; None if one never is."""
        last = self._phases[-1]
        left = 0
        for share, limit, count in zip(last.shares, self.limits, last.base, strict=True):
            if share and limit is None:
                return None
            left += max(0, (limit or 0) - count) if share else 0
        return last.start + left

    def _natural_end(self, phase: Phase) -> int | None:
        needs = [
            (source, limit - phase.base[source])
            for source, limit in enumerate(self.limits)
            if limit is not None and phase.shares[source]
        ]
        if not any(phase.shares):
            return phase.start
        if not needs:
            return None
        # The quota is within 2 of exact, which leaves a short range to search.
        low = min((need - 2) * SHARES // phase.shares[source] for source, need in needs)
        high = min((need + 2) * SHARES // phase.shares[source] + 1 for source, need in needs)

        def retired(draws: int) -> bool:
            counts = phase.quota.counts(draws)
            return any(counts[source] >= need for source, need in needs)

        return phase.start + bisect_left(range(high), True, lo=max(0, low), key=retired)


@dataclass(frozen=True)
class Amounts:
    """Facts about the sources that ``total_draws`` needs; ``tokens_between`` takes two states of the counters."""

    rows: Sequence[int]
    tokens: Sequence[int]
    tokens_between: Callable[[Counts, Counts], int]


def total_draws(stop: StopConfig, schedule: Schedule, amounts: Amounts) -> int:
    """The number of draws after which the data ends, at least 1: by ``stop``, or earlier when every source is retired.

    epochs: that number times the rows of all sources that take part, rounded up. tokens: the first draw that reaches
    that number of tokens. first_exhausted, all_seen_once: the draw at which the first source, or every source, has used
    all its rows once.
    """
    live = [source for source, weight in enumerate(schedule.weights) if weight]
    if stop.epochs is not None:
        draws = -int(-Fraction(repr(stop.epochs)) * sum(amounts.rows[source] for source in live) // 1)
    elif stop.examples is not None:
        draws = stop.examples
    elif stop.tokens is not None:
        draws = _draws_for_tokens(stop.tokens, schedule, amounts)
    else:
        condition = any if stop.first_exhausted else all

        def reached(draws: int) -> bool:
            counts = schedule.counts(draws)
            return condition(counts[source] >= amounts.rows[source] for source in live)

        draws = _first_draw(reached, schedule)
    return draws if schedule.possible is None else min(draws, schedule.possible)


def _first_draw(reached: Callable[[int], bool], schedule: Schedule) -> int:
    """The smallest number of draws for which a monotone condition holds, or all possible draws."""
    high = 1
    while not reached(high):
        if schedule.possible is not None and high >= schedule.possible:
            return schedule.possible
        high *= 2
    return bisect_left(range(high + 1), True, lo=high // 2, key=reached)


def _draws_for_tokens(target: int, schedule: Schedule, amounts: Amounts) -> int:
    """The first draw that brings the tokens to ``target``: guessed from mean lengths, then counted around the guess."""

    def expected(draws: int) -> bool:
        counts = schedule.counts(draws)
        parts = zip(counts, amounts.tokens, amounts.rows, strict=True)
        return sum(count * tokens // rows for count, tokens, rows in parts) >= target

    def between(first: int, last: int) -> int:
        return amounts.tokens_between(schedule.counts(first), schedule.counts(last))

    step = 1024
    low = _first_draw(expected, schedule)
    total = amounts.tokens_between([0] * len(amounts.rows), schedule.counts(low))
    while total >= target and low > 0:
        earlier = max(0, low - step)
        total -= between(earlier, low)
        low, step = earlier, 2 * step
    while between(low, low + step) < target - total:
        if schedule.possible is not None and low + step >= schedule.possible:
            return schedule.possible
        step *= 2
    return bisect_left(range(low + step + 1), True, lo=low, key=lambda draws: between(low, draws) >= target - total)
