"""When a checkpoint is due by the clock of the first rank: every so many minutes, or as often as loses least.

The other ranks hear of it in the collective of the step (``Signs.save``), so clocks that differ do no harm.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from train.plan.speed import checkpoint_interval, mean_time_between_failures

FIRST = 10
"""With ``auto``: steps before the first checkpoint, whose stall is measured; by then a step takes its usual time."""
LEAST_STALL_S = 0.01
"""What is measured below it is noise."""


class Timetable:
    """Of a run on ``gpus`` devices; ``measure``: find the interval from the first stall, besides ``every_minutes``."""

    def __init__(
        self, every_minutes: float, *, measure: bool, gpus: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.interval = every_minutes * 60 or math.inf
        """Seconds."""
        self.measure, self.gpus, self._now = measure, gpus, now
        self._begun, self._steps = now(), 0

    def due(self, *, in_flight: bool) -> bool:
        """Whether the step that ends now is to be saved. ``in_flight``: a save is. To be asked once a step."""
        self._steps += 1
        if self.measure and self._steps >= FIRST and not in_flight:
            return True
        return self._now() - self._begun >= self.interval

    def begun(self) -> None:
        """A save has begun, for whatever reason."""
        self._begun, self._steps = self._now(), 0

    def published(self, stall_s: float, after_s: float) -> str:
        """Take the interval from a save that training waited ``stall_s`` for and that was published ``after_s`` later.

        Returns the sentence that says so; "" if the interval was known.
        """
        if not self.measure:
            return ""
        self.measure = False
        stall_s = max(stall_s, LEAST_STALL_S)
        found = max(checkpoint_interval(stall_s, self.gpus), after_s)
        shorter = f", and every {self.interval / 60:g} min are asked for" if self.interval < found else ""
        self.interval = min(self.interval, found)
        days = mean_time_between_failures(self.gpus) / 86400
        return (
            f"checkpoint.every_steps: auto is a checkpoint every {found / 60:.1f} min: training waits {stall_s:.2f} s "
            f"for it, and {self.gpus} GPUs fail once in {days:,.1f} days (Young 1974){shorter}"
        )
