"""A rank as its watchdog follows it, from before it has come to the shared memory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field

from train.watchdog.board import Phase, Place, Slot, Word
from train.watchdog.limits import Seen
from train.watchdog.processes import state_of


@dataclass
class Member:
    local_rank: int
    slot: Slot
    started: tuple[int, int, int] = (0, 0, 0)
    """Rank, process id and start time of one that the watchdog has found before it came."""
    beats: int = -1
    quiet: float = 0.0
    stopped: float = 0.0
    state: str = "R"
    alive_at: float = field(default_factory=time.time)
    """When it was last seen alive, in seconds since 1970: no later than anything that followed from its death."""

    def look(self, passed: float) -> None:
        """Look again, ``passed`` seconds after the last time.

        Silence is the sum of these, and not a difference of times: where all processes were suspended, the watchdog
        too, the ranks did not hang.
        """
        self.state = state_of(self.pid, self.born)
        if self.state:
            self.alive_at = time.time()
        beats = self.slot.words[Word.BEATS]
        self.quiet = self.quiet + passed if beats == self.beats else 0.0
        self.stopped = self.stopped + passed if self.state == "T" else 0.0
        self.beats = beats

    @property
    def here(self) -> bool:
        """Whether it has come, so that its slot is filled."""
        return bool(self.slot.words[Word.PID])

    @property
    def rank(self) -> int:
        return self.slot.words[Word.RANK] if self.here else self.started[0]

    @property
    def pid(self) -> int:
        return self.slot.words[Word.PID] or self.started[1]

    @property
    def born(self) -> int:
        return self.slot.words[Word.BORN] if self.here else self.started[2]

    @property
    def lives(self) -> bool:
        return bool(self.state)

    @property
    def code(self) -> int | None:
        """How it said that it ended; None: it has not."""
        return self.slot.words[Word.CODE] - 1 if self.slot.words[Word.CODE] else None

    @property
    def seen(self) -> Seen:
        words = self.slot.words
        return Seen(
            rank=self.rank,
            pid=self.pid,
            phase=Phase(words[Word.PHASE]),
            place=Place(words[Word.PLACE]),
            step=words[Word.STEP],
            position=words[Word.POSITION],
            quiet=self.quiet,
            stopped=self.stopped,
            state=self.state,
        )

    @property
    def running(self) -> bool:
        """Whether it lives now; ``lives`` says whether it did at the last look."""
        return bool(state_of(self.pid, self.born))

    def send(self, number: signal.Signals) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
