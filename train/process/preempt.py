"""Being asked to stop: a signal or a file sets a flag, and the run leaves at the next step boundary.

Handlers only set the flag; saving inside a signal handler hung other frameworks. Under SLURM the batch script
touches the stop file, because signals often do not reach the workers.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from conf.attempts.owner import Owner
from conf.errors import CorralError, HeldByAnother, Requeue

AGAIN_AFTER_S = 5.0
"""A SIGTERM so long after the first is a second request; SLURM and torchrun each pass on the same one."""


class StopRequest:
    """True once SIGTERM or SIGUSR1 arrived or the file named by CORRAL_STOP_FILE exists.

    ``polls``: whether this process looks for the file. One per node is enough, because the ranks tell each other at
    every step; a file system need not answer all of them.

    A second SIGTERM does not wait for the step to end: it raises ``outcome``, in whatever the main thread does.

    ``successor``: the attempt that has taken this run over, asked for with the file. This process then leaves without
    a checkpoint.
    """

    def __init__(self, *, polls: bool = True, successor: Callable[[], Owner | None] = lambda: None) -> None:
        self._reason, self._first = "", 0.0
        self.outcome: Callable[[str], CorralError] = lambda reason: Requeue(
            f"stopped before its first step because of {reason}"
        )
        """How a run ends that stops now."""
        self._polls, self._successor = polls, successor
        self._file = Path(os.environ["CORRAL_STOP_FILE"]) if os.environ.get("CORRAL_STOP_FILE") else None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first and number == signal.SIGTERM and now - self._first >= AGAIN_AFTER_S:
            raise self.outcome("a second SIGTERM")
        self._first = self._first or now
        self._reason = signal.Signals(number).name

    def pending(self) -> bool:
        """Whether this process was asked to stop. Cheap: it looks at two small files at most.

        Raises HeldByAnother (73) if a later attempt has taken the run over.
        """
        if self._polls:
            self._look()
            if later := self._successor():
                raise HeldByAnother(f"{later}, has taken this run over; nothing more is written here")
        return bool(self._reason)

    def _look(self) -> None:
        if not self._reason and self._file is not None and self._file.exists():
            self._reason = f"stop file {self._file}"

    @property
    def reason(self) -> str:
        """Why the run stops, on a rank that did not poll too; asked once, when it does."""
        self._look()
        return self._reason or "another rank was asked to stop"
