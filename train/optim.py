"""The learning rate of a step, a pure function of the step's number."""

from __future__ import annotations

import math

from conf.schema import OptimConfig, ScheduleConfig


def warmup_length(schedule: ScheduleConfig, total_steps: int) -> int:
    """Warmup in steps; a fraction is rounded to the nearest step."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return round((schedule.warmup_fraction or 0.0) * total_steps)


def lr_at(step: int, *, optim: OptimConfig, schedule: ScheduleConfig, total_steps: int) -> float:
    """Learning rate of the ``step``-th update, counted from 0.

    Linear warmup that reaches the peak at its last step, then cosine (Loshchilov and Hutter 2017), linear or constant;
    wsd (Hu et al. 2024, MiniCPM) holds the peak and decays linearly over the last ``decay_fraction`` of the steps. All
    decays reach ``min_ratio`` of the peak after the last step, as transformers' schedules do: the data of a step at
    rate 0 would not be learnt.
    """
    warmup = warmup_length(schedule, total_steps)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return optim.lr * _decay(min(1.0, progress), step, schedule, total_steps)


def _decay(progress: float, step: int, schedule: ScheduleConfig, total_steps: int) -> float:
    floor = schedule.min_ratio
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "linear":
        return floor + (1.0 - floor) * (1.0 - progress)
    if schedule.kind == "cosine":
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
    length = max(1, round(schedule.decay_fraction * total_steps))
    left = min(1.0, (total_steps - step) / length)
    return floor + (1.0 - floor) * left
