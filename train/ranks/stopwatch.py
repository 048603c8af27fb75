"""Times a rank's own work on its device, without making the host wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Stopwatch:
    """Sums the time between ``running`` and its end over several stretches of work."""

    device: torch.device
    host_s: float = 0.0
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            yield
            end.record()
            self.events.append((start, end))
        else:
            began = time.perf_counter()
            yield
            self.host_s += time.perf_counter() - began

    def seconds(self) -> float:
        """The sum. On a GPU it waits for the last stretch, not for what was asked of the device after it."""
        if self.events:
            self.events[-1][1].synchronize()
        device_ms = sum(float(start.elapsed_time(end)) for start, end in self.events)
        return self.host_s + device_ms / 1000
