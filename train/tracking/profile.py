"""``debug=profile``: what chosen steps spend their time and memory on, as files that standard viewers open.

profile/steps-3-5.txt            the operators that take most time: read it first
profile/steps-3-5.trace.json.gz  every operator and kernel on a time line; load it at https://ui.perfetto.dev
profile/steps-3-5.memory.pickle  on a GPU, every allocation with its stack: ``python -m torch.cuda._memory_viz
                                 trace_plot FILE -o memory.html``
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from conf.durable import write_whole
from train.loop import StepReport
from train.watchdog.board import Phase
from train.watchdog.heartbeat import heart

OPERATORS = 25
"""Rows of the table."""
ALLOCATIONS = 1_000_000
"""Events of the allocator that are kept: the newest."""


@dataclass(frozen=True)
class Profiler:
    """Traces the steps ``steps`` of one rank into ``folder``; neighbouring steps are one trace."""

    steps: Collection[int]
    """Numbers of optimizer steps, the first is 1."""
    folder: Path
    tell: Callable[[str], None]
    """Gets a line about every trace."""

    def watch(self, reports: Iterator[StepReport], after: int) -> Iterator[StepReport]:
        """``reports``, of which the first is that of step ``after + 1``."""
        trace: Any = None
        step = first = after + 1
        try:
            while True:
                if step in self.steps and trace is None:
                    trace, first = _begin(), step
                report = next(reports, None)
                if report is None:
                    return
                if trace is not None and step + 1 not in self.steps:
                    self._write(trace, first, step)
                    trace = None
                yield report
                step += 1
        finally:  # the run ends inside the chosen steps
            if trace is not None and step > first:
                self._write(trace, first, step - 1)

    def _write(self, trace: Any, first: int, last: int) -> None:
        heart.enter_alone(Phase.FIRST_STEP)  # it takes a minute to write
        trace.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = self.folder / (f"steps-{first}-{last}" if last > first else f"step-{first}")
        device = torch.cuda.is_available()
        by = "self_device_time_total" if device else "self_cpu_time_total"
        table = trace.key_averages().table(sort_by=by, row_limit=OPERATORS, max_name_column_width=60)
        write_whole(name.with_suffix(".txt"), table + "\n")
        trace.export_chrome_trace(f"{name}.trace.json.gz")
        self.tell(f"profile: {name}.txt; load {name.name}.trace.json.gz at https://ui.perfetto.dev")
        if device:
            torch.cuda.memory._dump_snapshot(f"{name}.memory.pickle")  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)
            self.tell(
                f"profile: python -m torch.cuda._memory_viz trace_plot {name}.memory.pickle -o {name}.memory.html"
            )


def _begin() -> Any:
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # above the marks for tracers (5) that it would print by default
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.memory._record_memory_history(max_entries=ALLOCATIONS)
    trace: Any = profile(activities=activities, record_shapes=True)
    trace.start()
    return trace
