"""Where an attempt of the soak is killed or asked to stop: drawn from a seeded generator, and told as a plan."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from random import Random

from train.process.faultpoint import POINTS

WORLD = 2
STEPS, EVERY, EVALUATED, KEPT = 16, 2, 8, 2
"""Of every run: its steps, after how many of them it saves and evaluates, and how many checkpoints it keeps."""
SHARES = {"checkpoint": 0.54, "start": 0.2, "time": 0.13, "step": 0.06, "evaluation": 0.04, "end": 0.03}
"""Of the attempts. A plan does not always come to act: the run may end before."""
TENSORS = 36
"""At least as many tensors are in the files of a rank."""
FULL_DISK = "point=checkpoint.before_write,nth=all,action=ENOSPC"


@dataclass(frozen=True)
class Attack:
    place: str
    """The point, or ``time``."""
    faults: str = ""
    """CORRAL_FAULTS of the attempt."""
    signals: list[tuple[float, list[int], int]] = field(default_factory=list)
    """See ``warm.Job``."""
    agent: bool = False
    """Whether the other ranks are ended as torchrun does; else they have to notice by themselves, as under SLURM."""

    def __str__(self) -> str:
        sent = [f"{signal.Signals(each[2]).name} to ranks {each[1]} after {each[0]:.2f} s" for each in self.signals]
        return "; ".join([*filter(None, [self.faults]), *sent, *(["torchrun"] if self.agent else [])]) or "none"

    @property
    def kind(self) -> str:
        return self.place.partition(".")[0]


def drawn(random: Random, action: str, start: int, seconds: float) -> Attack:
    """The next attack on a run that continues after ``start`` steps; ``seconds``: of an attempt that is left alone.

    ``action``: SIGKILL or SIGTERM. Some requests to stop meet a full disk.
    """
    kind = random.choices([*SHARES], [*SHARES.values()])[0]
    more = f"{FULL_DISK};" if action == "SIGTERM" and random.random() < 0.25 else ""
    if kind == "time" or (action == "SIGTERM" and random.random() < 0.6):
        ranks = random.choice([[0], [1], [0, 1]])
        after = round(random.uniform(0.02, seconds), 3)
        return Attack("time", more.rstrip(";"), [(after, ranks, signal.Signals[action])], random.random() < 0.5)
    point = random.choice([point for point in POINTS if point.startswith(kind)])
    plan = [f"point={point}", f"action={action}"]
    if kind == "step":
        plan.append(f"step={random.randint(min(start, STEPS - 1), STEPS - 1) + (point != 'step.before_update')}")
    else:
        plan.append(f"nth={random.randint(1, times(point, start))}")
    if "(rank 0)" not in POINTS[point] and (rank := random.choice([0, 1, None])) is not None:
        plan.append(f"rank={rank}")
    return Attack(point, more + ",".join(plan), agent=random.random() < 0.5)


def times(point: str, start: int) -> int:
    """About how often a rank comes to ``point`` on its way from step ``start`` to the end."""
    saves = max((STEPS - start) // EVERY, 1)
    per_save = {"checkpoint.in_file": TENSORS, "checkpoint.manifest": 2}
    if point == "checkpoint.in_prune":
        return max(saves - (KEPT if start == 0 else 0), 1)
    if point.startswith("checkpoint"):
        return saves * per_save.get(point, 1)
    return 2 if point.startswith("evaluation") and start < EVALUATED else 1
