"""Shows a run's progress: a progress bar on a terminal, single lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from conf.safety.console import SafeConsole
from conf.safety.secrets import redact_text
from conf.safety.texts import for_terminal
from train.tracking.figures import clock, eval_line, short_count

MIN_INTERVAL_S = 5.0  # between two plain lines, growing to 1% of the elapsed time in long runs
LINES_PER_RUN = 20


class TerminalTracker:
    """Progress of ``total_steps`` optimizer steps on ``stream``: step, loss, learning rate, tokens/s, time left."""

    def __init__(self, total_steps: int, stream: TextIO | None = None) -> None:
        self.total_steps = total_steps
        self.stream = stream or sys.stdout
        self.bar = ProgressBar(total_steps, self.stream) if self.stream.isatty() else None
        self.started = time.monotonic()
        self.first_step: int | None = None
        self.last_printed = (-1, 0.0)  # step, time
        self.waiting: tuple[int, Mapping[str, float]] | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            if self.first_step is None:
                # Time per step starts after the first step, which includes compilation and loading.
                self.first_step, self.started = step, time.monotonic()
            self.progress(step, metrics)
        evaluated = eval_line(metrics)
        if evaluated:
            self.note(f"step {step}: {evaluated}")

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.bar:
            self.bar.show(step, metrics, self.seconds_left(step))
            return
        self.waiting = (step, metrics)
        if self.due(step):
            self.print_waiting()

    def event(self, kind: str, **fields: Any) -> None:
        pass

    def note(self, text: str) -> None:
        shown = for_terminal(redact_text(text))
        if self.bar:
            self.bar.note(shown)
        else:
            print(shown, file=self.stream, flush=True)

    def sync(self) -> None:
        pass

    def close(self, code: int) -> None:
        if self.bar:
            self.bar.progress.stop()
        elif self.waiting:  # a run that stops early also shows its last step
            self.print_waiting()

    def due(self, step: int) -> bool:
        """Whether to print a line: at the first and last step, every twentieth of the run, and after some seconds."""
        last_step, last_time = self.last_printed
        now = time.monotonic()
        interval = max(MIN_INTERVAL_S, 0.01 * (now - self.started))
        return (
            last_step < 0
            or step >= self.total_steps
            or now - last_time >= interval
            or (step % max(1, self.total_steps // LINES_PER_RUN) == 0 and self.total_steps <= 2000)
        )

    def print_waiting(self) -> None:
        assert self.waiting is not None
        step, metrics = self.waiting
        self.waiting, self.last_printed = None, (step, time.monotonic())
        width = len(str(self.total_steps))
        left = self.seconds_left(step)
        ending = [f"{clock(left)} left"] if left else []
        self.note("  ".join([f"step {step:>{width}}/{self.total_steps}", *shown_metrics(metrics), *ending]))

    def seconds_left(self, step: int) -> float | None:
        """An estimate from the mean time per step of this process; None after its first step, 0 at the end."""
        if self.first_step is None or step <= self.first_step:
            return None
        return (time.monotonic() - self.started) / (step - self.first_step) * max(0, self.total_steps - step)


class ProgressBar:
    """One live line by rich; notes appear above it."""

    def __init__(self, total_steps: int, stream: TextIO) -> None:
        self.console = SafeConsole(file=stream)
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=self.console,
            expand=True,
            refresh_per_second=4,
        )
        self.task = self.progress.add_task("", total=total_steps, figures="", left="")
        self.progress.start()

    def show(self, step: int, metrics: Mapping[str, float], seconds_left: float | None) -> None:
        left = f"{clock(seconds_left)} left" if seconds_left else ""
        self.progress.update(self.task, completed=step, figures="  ".join(shown_metrics(metrics)), left=left)

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def shown_metrics(metrics: Mapping[str, float]) -> list[str]:
    """The figures of a progress line that ``metrics`` contains."""
    formats = {
        "train/loss": "loss {:.4f}",
        "train/lr": "lr {:.2e}",
        "train/grad_norm": "grad {:.2f}",
    }
    shown = [text.format(metrics[name]) for name, text in formats.items() if name in metrics]
    if "perf/tokens_per_second" in metrics:
        shown.append(f"{short_count(metrics['perf/tokens_per_second'])} tok/s")
    return shown
