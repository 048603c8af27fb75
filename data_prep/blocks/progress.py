"""Progress of preparation: a bar with rows per second and time left on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from conf.safety.console import SafeConsole

PLAIN_EVERY_S = 15.0


class Progress:
    """Counts rows; the share done is measured in bytes read, because the number of rows is not known beforehand."""

    def __init__(self, console: SafeConsole, total_bytes: int) -> None:
        self._console = console
        self._total = max(total_bytes, 1)
        self._rows = 0
        self._done = 0
        self._file_bytes = 0
        self._start = self._printed = time.monotonic()
        self._bar: RichProgress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
            )
            times = (TextColumn("{task.fields[rate]}", markup=False), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = RichProgress(*columns, *times, console=self._console, transient=True)
            self._task = self._bar.add_task("reading", total=self._total, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def file_done(self, size: int) -> None:
        """A file of ``size`` bytes has been read to its end."""
        self._done += size
        self._file_bytes = 0

    def advance(self, source: str, rows: int, position: int) -> None:
        """``rows`` more rows are tokenised; the current file is read up to ``position`` bytes."""
        self._rows += rows
        self._file_bytes = position
        now = time.monotonic()
        rate = f"{self._rows:,} rows, {self._rows / max(now - self._start, 1e-3):,.0f} rows/s"
        done = min(self._done + self._file_bytes, self._total)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=source, rate=rate)
        elif now - self._printed >= PLAIN_EVERY_S:
            self._printed = now
            left = (now - self._start) * (self._total - done) / max(done, 1)
            # Nothing is known of a data set of the hub before its end.
            self._console.print(f"{source}: {rate}" + (f", about {left:.0f} s left" if done else ""), highlight=False)
