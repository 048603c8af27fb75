"""Being asked to stop: a signal or a file sets a flag, and the run leaves at the next step boundary.

Handlers only set the flag; saving inside a signal handler hung other frameworks. Under SLURM the batch script
touches the stop file, because signals often do not reach the workers.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType


class StopRequest:
    """True once SIGTERM or SIGUSR1 arrived or the file named by CORRAL_STOP_FILE exists."""

    def __init__(self) -> None:
        self._reason = ""
        self._file = Path(os.environ["CORRAL_STOP_FILE"]) if os.environ.get("CORRAL_STOP_FILE") else None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._reason = signal.Signals(number).name

    def pending(self) -> bool:
        """Whether this process was asked to stop. Cheap: one stat call."""
        if not self._reason and self._file is not None and self._file.exists():
            self._reason = f"stop file {self._file}"
        return bool(self._reason)

    @property
    def reason(self) -> str:
        return self._reason or "another rank was asked to stop"
