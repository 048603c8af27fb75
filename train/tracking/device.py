"""What every rank says of its device at each step, and what the first rank makes of it: the worst of all, by name.

One rank's figures tell little of a run of many: the slowest rank sets the pace and the fullest runs out of memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from train.tracking.metrics import GIB, peak_memory_gib

FIGURES = ("busy_s", "peak_gib", "reserved_gib", "retries", "watts", "utilisation")
"""Of one rank; NaN where the device does not say. ``utilisation``: share of the time in which a kernel ran."""
ASK_EVERY_S = 1.0
"""NVML averages over up to a second, and a question may take milliseconds."""
SLOW, LONG = 1.2, 50
"""A rank is named that is this much slower than the median in so many steps in a row."""

Table = npt.NDArray[np.float64]
"""[ranks, FIGURES]"""


@dataclass
class Sensors:
    """The figures of this rank's device."""

    device: torch.device
    asked: float = -math.inf
    answers: list[float] = field(default_factory=lambda: [math.nan, math.nan])

    def read(self, busy_s: float) -> list[float]:
        """FIGURES; ``busy_s`` is what the loop measured."""
        if self.device.type != "cuda":
            return [busy_s, peak_memory_gib(), math.nan, math.nan, math.nan, math.nan]
        stats = torch.cuda.memory_stats(self.device)
        peak, reserved = (stats[f"{kind}_bytes.all.peak"] / GIB for kind in ("allocated", "reserved"))
        if time.monotonic() - self.asked >= ASK_EVERY_S:
            self.asked = time.monotonic()
            self.answers = [
                _answer(lambda: torch.cuda.power_draw(self.device) / 1000),
                _answer(lambda: torch.cuda.utilization(self.device) / 100),
            ]
        return [busy_s, peak, reserved, float(stats["num_alloc_retries"]), *self.answers]


def _answer(ask: Callable[[], float]) -> float:
    """NaN where NVML is not installed, or refuses: it only informs."""
    try:
        return float(ask())
    except Exception:  # pynvml raises its own type for every reason
        return math.nan


def device_metrics(table: Table, local_world: int) -> dict[str, float]:
    """The metrics of a step; watts and utilisation of every node, whose ranks are ``local_world`` neighbours."""
    by_name = dict(zip(FIGURES, table.T, strict=True))
    busy = by_name["busy_s"]
    metrics = {
        "perf/busy_s": float(busy.max()),
        "perf/busy_median_s": float(np.median(busy)),
        "rel/straggler_rank": int(busy.argmax()),
        "memory/peak_gib": float(by_name["peak_gib"].max()),
        "memory/peak_rank": int(by_name["peak_gib"].argmax()),
        "memory/reserved_gib": float(by_name["reserved_gib"].max()),
        "memory/alloc_retries": float(by_name["retries"].sum()),
    }
    first = np.arange(0, len(table), local_world)  # of every node; all nodes at once, because they may be hundreds
    watts = np.add.reduceat(by_name["watts"], first).tolist()
    utilisation = (np.add.reduceat(by_name["utilisation"], first) / np.diff(first, append=len(table))).tolist()
    for node, (sum_of_watts, mean) in enumerate(zip(watts, utilisation, strict=True)):
        metrics |= {f"gpu/watts/node{node}": sum_of_watts, f"gpu/utilisation/node{node}": mean}
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


@dataclass
class Straggler:
    """Notices a rank that is slower than the others for long. It only names it: a slow rank is no failure."""

    hosts: Sequence[str]
    """Of every rank."""
    rank: int = -1
    steps: int = 0

    def watch(self, busy: npt.NDArray[np.float64]) -> str:
        """A sentence once a rank has been the slowest by far for LONG steps, and again when another one is."""
        slowest, median = int(busy.argmax()), float(np.median(busy))
        if busy[slowest] < SLOW * median:
            self.rank, self.steps = -1, 0
            return ""
        self.rank, self.steps = slowest, (self.steps + 1 if slowest == self.rank else 1)
        if self.steps != LONG:
            return ""
        return (
            f"rank {slowest} on {self.hosts[slowest]} was the slowest in {LONG} steps in a row, now with "
            f"{busy[slowest]:.3g} s of its own work per step where the median is {median:.3g} s: all wait for it; "
            "look at this node's temperature, clocks and other jobs"
        )
