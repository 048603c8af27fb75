"""Tokens per second in a few constants, fitted to published throughput tables, and what follows: days, goodput.

The time of one token on one GPU is a sum of non-negative parts: matrices, head, attention (FLOPs at the data sheet's
peak), elementwise work (proportional to layers x width), the gathering of weights and the launches of a micro-batch,
and two terms for many ranks. The constants are in speed.json, made by ``python -m benchmarks.fit_throughput`` from
benchmarks/throughput/published.csv, every row of which names its source.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from train.plan.memory import GIB

FITTED = Path(__file__).with_name("speed.json")
PEAK = {"h100": 989.4e12, "h200": 989.4e12, "a100": 312e12}
"""Dense bf16 FLOP/s from the data sheets."""
FITTED_AS = {"h100": "h100", "h200": "h100", "a100": "a100"}
FAR = 2.0
"""Further than this factor outside the fitted rows, no figure is given."""
GPU_HOURS_PER_FAILURE = 16384 * 54 * 24 / 419
"""419 unexpected interruptions in 54 days on 16,384 H100 (Grattafiori et al. 2024, The Llama 3 Herd of Models,
section 3.3.4): one in 50,676 GPU-hours."""
RESTART_S = 300.0
"""From a failure to the next step: an estimate."""


@dataclass(frozen=True)
class Job:
    """A training step as the cost model sees it."""

    gpu: str
    gpus: int
    parameters: float
    """All weights."""
    matrices: float
    """Elements of all linear layers of the blocks."""
    hidden: int
    layers: int
    vocab: int
    seq_len: float
    """Mean length that attention sees."""
    micro_tokens: float
    step_tokens: float
    """Tokens per rank and optimizer step."""
    recomputed: float
    """Share of the blocks that are computed twice."""
    stage: int
    method: str = "full"
    logits: float = 1.0
    """Share of tokens with logits."""
    reduced: float = 2.0
    """Bytes of a number on its way in a reduction; 2 in the fitted rows."""
    exposed: float = 0.0
    """Seconds per token of reductions between nodes that no compute hides, but for one per step: the rows have that."""


def parts(job: Job) -> list[float]:
    """What the constants multiply, seconds per token or multiples of them, in the order of speed.json."""
    peak, many = PEAK[job.gpu], math.log2(max(job.gpus, 8) / 8)
    backward = 4.0 if job.method == "full" else 2.0  # a frozen matrix needs no gradient of its own
    body = (2.0 * (1.0 + job.recomputed) + backward) * job.matrices / peak
    again = 1.0 + job.recomputed / 3.0
    trained = job.parameters if job.method == "full" else 0.0
    return [
        body,
        (2.0 + backward) * job.vocab * job.hidden * job.logits / peak,
        again * 12.0 * job.layers * job.hidden * job.seq_len / 2.0 / peak,
        again * job.layers * job.hidden * 1e-12,
        ((4.0 * job.parameters + job.reduced * trained) / 6.0 / job.micro_tokens * 1e-12) if job.stage == 3 else 0.0,
        body * many,
        trained / job.step_tokens * many * 1e-12,
        job.layers / job.micro_tokens * 1e-3,
    ]


@cache
def fitted() -> dict[str, Any]:
    return dict(json.loads(FITTED.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Speed:
    tokens_per_second_per_gpu: float
    low: float
    high: float
    """The bracket: 90% of held-out rows lie inside, wider where the job is unlike the rows."""
    notes: tuple[str, ...]
    """In what the job is unlike the fitted rows."""


def speed(job: Job) -> Speed | str:
    """Throughput of ``job``, or one sentence saying why no figure is given."""
    found = fitted()[FITTED_AS[job.gpu]]
    notes = []
    for name, value in (("parameters", job.parameters), ("gpus", job.gpus), ("micro_tokens", job.micro_tokens)):
        low, high = found["range"][name]
        # one node is one node: fewer GPUs than 8 have less to wait for, not more
        if (name != "gpus" and value * FAR < low) or value > high * FAR:
            return (
                f"{name} {value:,.0f} is far outside the fitted rows ({low:,.0f} to {high:,.0f}), so no speed is given"
            )
        if not low <= value <= high:
            notes.append(f"{name} {value:,.0f} is outside the fitted {low:,.0f} to {high:,.0f}")
    seconds = sum(constant * part for constant, part in zip(found["constants"], parts(job), strict=True))
    if job.method != "full":
        notes.append("adapters were not among the fitted rows")
    if job.exposed > 0.01 * seconds:
        notes.append(
            f"traffic between nodes that does not hide, {job.exposed / (seconds + job.exposed):.0%} of the time"
        )
    if job.gpu != FITTED_AS[job.gpu]:
        notes.append(f"{job.gpu} is taken for {FITTED_AS[job.gpu]}")
    rate = 1.0 / (seconds + job.exposed)
    spread = found["held_out"]["p90"] * (2.0 if notes else 1.0)
    return Speed(rate, rate * (1.0 - spread), rate * (1.0 + spread), tuple(notes))


def checkpoint_interval(stall_s: float, gpus: int) -> float:
    """Seconds between checkpoints that lose least: sqrt(2 * stall * mean time between failures) (Young 1974)."""
    return math.sqrt(2.0 * stall_s * mean_time_between_failures(gpus))


def mean_time_between_failures(gpus: int) -> float:
    """Seconds."""
    return GPU_HOURS_PER_FAILURE * 3600.0 / gpus


def goodput(stall_s: float, interval_s: float, gpus: int) -> float:
    """Share of the time that makes progress: first order of Daly 2006, eq. 13, with the restart."""
    lost = (interval_s / 2.0 + RESTART_S) / mean_time_between_failures(gpus)
    return max(0.0, 1.0 - stall_s / (interval_s + stall_s) - lost)


def stall_seconds(checkpoint_bytes: float, gib_per_s: float) -> float:
    """Writing a checkpoint, all ranks together, at ``gib_per_s`` of the storage."""
    return checkpoint_bytes / GIB / gib_per_s
