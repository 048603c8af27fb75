"""Training as a generator of step reports. One optimizer step reads as a sentence; everything else is the caller's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from conf.schema import LossConfig
from data_prep.shards import Split
from data_prep.stream import GlobalStep, PackedRow, Stream, rank_rows
from train.batch import Batch
from train.distributed import Ranks
from train.engine import Engine
from train.loss import loss_sums
from train.sequence_parallel import share

PLAIN = LossConfig()
Collate = Callable[[Sequence[PackedRow], Sequence[Split]], Batch]


@dataclass(frozen=True)
class StepReport:
    plan: GlobalStep
    loss: float
    """Mean negative log-likelihood over the supervised tokens of the global batch, nats."""
    grad_norm: float
    lr: float
    skipped: bool
    stop: bool
    """Some rank was asked to stop."""
    uids: tuple[int, ...]
    """Samples this rank fed to the engine, in row order."""
    seconds: float
    data_seconds: float
    """Of these, waiting for rows."""


def micro_batches(rows: Sequence[PackedRow], micro_size: int, count: int) -> list[Sequence[PackedRow]]:
    """``rows`` in ``count`` groups of ``micro_size``; groups beyond the rows are empty."""
    return [rows[index * micro_size : (index + 1) * micro_size] for index in range(count)]


def training_steps(
    engine: Engine,
    stream: Stream,
    splits: Sequence[Split],
    *,
    ranks: Ranks,
    collate: Collate,
    lr_at: Callable[[int], float],
    micro_size: int,
    accumulation: int,
    targets_only: bool,
    stop_pending: Callable[[], bool],
    loss: LossConfig = PLAIN,
) -> Iterator[StepReport]:
    """Yield one report per optimizer step until the stream ends.

    The loss denominator is the plan's, so it needs no communication; the only extra collective of a step sums the
    reported loss and the stop flags.
    """
    while True:
        began = time.perf_counter()
        plan = next(stream, None)
        if plan is None:
            return
        waited, nll = time.perf_counter() - began, torch.zeros((), device=ranks.device)
        uids: tuple[int, ...] = ()
        engine.module.train()
        groups = micro_batches(rank_rows(plan, ranks.reader, ranks.readers), micro_size, accumulation)
        for index, rows in enumerate(groups):
            reading = time.perf_counter()
            batch = share(collate(rows, splits), ranks)
            waited += time.perf_counter() - reading
            sums = loss_sums(engine.module, batch, targets_only=targets_only, loss=loss)
            engine.accumulate(sums.objective / max(1, plan.targets), last=index == accumulation - 1)
            nll, uids = nll + sums.nll, uids + batch.uids
        stream.look_ahead()  # the device has its work, the host begins to wait
        lr = lr_at(plan.index)
        outcome = engine.step(lr)
        total, stops = ranks.sum([float(nll), float(stop_pending())])
        yield StepReport(
            plan=plan,
            loss=total / max(1, plan.targets),
            grad_norm=outcome.grad_norm,
            lr=lr,
            skipped=outcome.skipped,
            stop=stops > 0,
            uids=uids,
            seconds=time.perf_counter() - began,
            data_seconds=waited,
        )
