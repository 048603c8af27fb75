"""Training as a generator of step reports. It only takes optimizer steps; its caller does everything else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from data_prep.stream.stream import GlobalStep, Stream
from train.batches.batch import Batch
from train.batches.feed import Feed
from train.engine import Engine
from train.objectives import Objective
from train.process.faultpoint import faultpoint
from train.ranks.step import Signs, tell
from train.ranks.stopwatch import Stopwatch
from train.watchdog.board import Phase, Place
from train.watchdog.heartbeat import heart


@dataclass(frozen=True)
class StepReport:
    plan: GlobalStep
    figures: dict[str, float]
    """The objective's figures of the global batch, by name: ``loss`` is the weighted mean negative log-likelihood of
    its targets, nats."""
    grad_norm: float
    lr: float
    skipped: bool
    signs: Signs
    """Of any rank."""
    fed: npt.NDArray[np.uint64]
    """The samples that all ranks fed to the engine, in the order of the rows; on the first rank alone."""
    seconds: float
    data_seconds: float
    """The part of ``seconds`` that this rank waited for rows."""
    own: npt.NDArray[np.float64]
    """[world, O] What ``training_steps``' ``own`` says on each rank; on the first rank alone."""

    @property
    def loss(self) -> float:
        return self.figures["loss"]


@dataclass(frozen=True)
class Accumulated:
    """Totals of one rank's micro-batches of a step."""

    reported: dict[str, torch.Tensor]
    """[micro-batches] The objective's figures, fp32."""
    uids: tuple[int, ...]
    targets: int
    seconds: float
    """Time spent waiting for batches."""
    forward: Stopwatch
    """The forward passes."""


def accumulate(
    engine: Engine, objective: Objective, batches: Iterable[Batch], *, count: int, denominator: float
) -> Accumulated:
    """Take ``count`` micro-steps: pass the objective's sum of a batch, divided by ``denominator``, to the engine."""
    reported: dict[str, list[torch.Tensor]] = {}
    uids: tuple[int, ...] = ()
    targets, waited, waiting = 0, 0.0, time.perf_counter()
    forward = Stopwatch(engine.ranks.device)
    for index, batch in enumerate(batches):
        waited += time.perf_counter() - waiting
        heart.at(Place.COMPUTING)
        with forward.running():
            sums = objective.sums(engine.module, batch)
        engine.accumulate(sums.objective / denominator, last=index == count - 1)
        for name, value in sums.reported.items():
            reported.setdefault(name, []).append(value)
        uids, targets = uids + batch.uids, targets + batch.targets
        heart.at(Place.READING)
        waiting = time.perf_counter()
    figures = {name: torch.stack(values) for name, values in reported.items()}
    return Accumulated(figures, uids, targets, waited, forward)


def training_steps(
    engine: Engine,
    stream: Stream,
    feed: Feed,
    objective: Objective,
    *,
    lr_at: Callable[[int], float],
    says: Callable[[float], tuple[Signs, Sequence[float]]] = lambda busy: (Signs(), (busy,)),
    accept: Callable[[float, float], bool] = lambda loss, grad_norm: True,
) -> Iterator[StepReport]:
    """Yield one report per optimizer step until the stream ends.

    ``says``: the signs of a rank and what it says of itself, from the seconds that it worked without the others: its
    forward passes and its waiting for rows. The backward passes and the update wait for the slowest rank, so all ranks
    take the same time. ``accept``: whether the update is made, from the loss and the gradient norm of all ranks.

    The denominator comes from the global step, so it needs no communication; the only extra collective of a step joins
    the reported figures, the signs and the ids of the samples. It comes before the update, so that all ranks know the
    loss when they decide about it.
    """
    while True:
        heart.begin_step()
        began = time.perf_counter()
        plan = next(stream, None)
        if plan is None:
            heart.enter(Phase.END)
            return
        waited, denominator = time.perf_counter() - began, objective.denominator(plan) or 1.0
        engine.module.train()
        done = accumulate(
            engine, objective, feed.batches(plan), count=feed.micro_batches(plan), denominator=denominator
        )
        stream.look_ahead()  # the device works now, and the host would only wait
        lr = lr_at(plan.index)
        heart.at(Place.UPDATING)
        signs, own = says(waited + done.seconds + done.forward.seconds())
        faultpoint("step.before_update", plan.index)
        most = feed.most_samples(plan)
        told = tell(feed.ranks, list(done.reported.values()), signs=signs, uids=done.uids, most=most, own=own)
        figures = {name: total / denominator for name, total in zip(done.reported, told.figures, strict=True)}
        outcome = engine.step(lr, partial(accept, figures["loss"]))
        faultpoint("step.after_update", plan.index + 1)
        seconds = time.perf_counter() - began
        heart.end_step(plan.index + 1, seconds)
        yield StepReport(
            plan=plan,
            figures=figures,
            grad_norm=outcome.grad_norm,
            lr=lr,
            skipped=outcome.skipped,
            signs=told.signs,
            fed=told.uids,
            seconds=seconds,
            data_seconds=waited + done.seconds,
            own=told.own,
        )
