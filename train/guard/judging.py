"""Whether the numbers of a step are bad: a pure function of them and of the steps before, so that all ranks agree."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from conf.schema import GuardConfig
from train.state import Health

SIGMA = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""
LEAST_SHARE, SHARE_OF_FEW = 0.02, 2.0
"""The spread is at least the first share of the median, and the second divided by the number of values: deviations
among few values, or among equal ones, say little."""
LEAST_LOSS_SPREAD = 0.01
"""Nats: the noise of a loss near 0, where a multiple of the median is nobody's trouble."""
LEAST_NORM_SPREAD = 1.0
"""Times the median: gradient norms have heavy tails; at the end of the demo one is seven times the median."""
WORSE_THAN_GUESSING = 1.5
"""Times the loss of a model that guesses, ln(vocabulary): above it a model that was no worse before has diverged."""
LATEST = 5
"""Losses that say where a run ended."""

Action = Literal["warn", "skip", "rollback", "stop"]
What = Literal["loss", "grad_norm", "non_finite"]


@dataclass(frozen=True)
class Finding:
    """Why a step is bad."""

    what: What
    value: float
    """Of the loss or the gradient norm; for ``non_finite`` that of the two which is not finite."""
    action: Action
    median: float = 0.0
    limit: float = 0.0
    """The largest value that would have been none."""
    count: int = 0
    """Values that the median is of."""


class Range(NamedTuple):
    median: float
    limit: float


def usual(values: Sequence[float], threshold: float, least: float = 0.0) -> Range:
    """What is usual after ``values``, at least one: their median, and ``threshold`` spreads above it.

    ``least``: the smallest spread. Finite values give finite results.
    """
    median = statistics.median(values)
    deviation = SIGMA * statistics.median(abs(value - median) for value in values)
    spread = max(deviation, abs(median) * max(LEAST_SHARE, SHARE_OF_FEW / len(values)), least)
    return Range(median, median + threshold * spread)


def judge(cfg: GuardConfig, health: Health, loss: float, grad_norm: float) -> tuple[Finding, ...]:
    """Everything that is bad about a step with this loss and gradient norm; empty for a good one."""
    wrong = next((value for value in (loss, grad_norm) if not math.isfinite(value)), None)
    if wrong is not None:
        return (Finding("non_finite", wrong, cfg.non_finite),)
    if not health.losses:
        return ()
    found = []
    watched: tuple[tuple[What, float, Sequence[float], Action, float], ...] = (
        ("loss", loss, health.losses, cfg.loss, LEAST_LOSS_SPREAD),
        ("grad_norm", grad_norm, health.norms, cfg.grad_norm, LEAST_NORM_SPREAD * statistics.median(health.norms)),
    )
    for what, value, before, action, least in watched:
        range_ = usual(before, cfg.threshold, least)
        if value > range_.limit:
            found.append(Finding(what, value, action, range_.median, range_.limit, len(before)))
    return tuple(found)


def refuses(findings: Sequence[Finding]) -> bool:
    """Whether a step with these findings gets no update."""
    return any(each.action != "warn" for each in findings)


def notice(
    cfg: GuardConfig, health: Health, step: int, findings: Sequence[Finding], *, loss: float, grad_norm: float
) -> None:
    """Enter step ``step`` (from 1) with its ``findings`` into ``health``."""
    if not health.first_loss and math.isfinite(loss):
        health.first_loss = loss
    if not refuses(findings):
        health.latest = [*health.latest, loss][-LATEST:]
    health.refused = [each for each in health.refused if each > step - cfg.window]
    if findings:
        health.incident = health.incident or step
        health.last_bad, health.bad = step, health.bad + 1
        if refuses(findings):
            health.refused.append(step)
            health.withheld = True
        return
    health.losses = [*health.losses, loss][-cfg.window :]
    health.norms = [*health.norms, grad_norm][-cfg.window :]
    if health.incident and step - health.last_bad >= cfg.patience:
        health.incident = health.last_bad = health.bad = 0
        health.withheld = health.returned = False


def unlearnt(step: int, updates: int, health: Health, vocabulary: int) -> str:
    """Why a run that ends after ``step`` steps with ``updates`` that were not undone is no success; "" if it is one."""
    if 2 * updates <= step:
        return f"only {updates} of its {step} steps made an update that stayed"
    if health.refused[-2:] == [step - 1, step]:
        return "its last two steps made no update, so nobody has seen its weights at work"
    if health.returned:
        return (
            f"it went back, and ended too soon after its last bad step {health.last_bad} to show that it is healthy "
            "again; lower guard.patience if so few steps are enough"
        )
    last = statistics.median(health.latest) if health.latest else 0.0
    if last > max(WORSE_THAN_GUESSING * math.log(vocabulary), health.first_loss):
        return (
            f"it diverged: the median loss of its last {len(health.latest)} updates is {last:,.4g}, its first loss was "
            f"{health.first_loss:,.4g}, and guessing gives {math.log(vocabulary):.4g}"
        )
    return ""
