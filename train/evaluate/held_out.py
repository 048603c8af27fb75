"""Held-out loss: the training loss of samples that the run has not seen, token-weighted over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from data_prep.corpus.shards import Split
from data_prep.stream.stream import PackedRow
from train.batches.feed import Feed
from train.model.compiled import eager
from train.objectives.sft import token_nll_sum
from train.ranks.group import Ranks
from train.watchdog.heartbeat import heart


@dataclass(frozen=True)
class HeldOut:
    """Sums over the chosen samples of one split, the same on every rank."""

    nll: float
    """Weighted sum of the targets' negative log-likelihoods, nats."""
    weight: float
    """Sum of the targets' weights; their number where all weights are 1."""
    rows: int

    @property
    def loss(self) -> float:
        """Mean nats per target; nan without targets."""
        return self.nll / self.weight if self.weight else math.nan


def held_out_loss(
    model: torch.nn.Module,
    feed: Feed,
    *,
    seq_len: int,
    max_rows: int,
    targets_only: bool = True,
) -> HeldOut:
    """Loss on ``max_rows`` samples (0: all) spread evenly over the only split of ``feed``. Collective.

    As in training, samples are packed into rows, ranks take micro-batches of rows in turn, and a team shares slices of
    a row. Every rank makes the same number of forward passes, the last perhaps on empty rows, because a ZeRO-3 forward
    pass is collective. The result does not depend on the number of ranks: samples do not see one another, and sums are
    exact up to rounding.
    """
    (split,) = feed.splits
    chosen = evenly_spaced(split.rows, max_rows)
    packed = pack_in_order(split, chosen, 0 if feed.layout == "padded" else seq_len)
    nll = torch.zeros((), dtype=torch.float64, device=feed.ranks.device)
    weight = 0.0
    with evaluating(model):
        for rows in dealt(packed, feed.micro_size, feed.ranks):
            heart.alive()
            batch = feed.batch(rows)
            nll += token_nll_sum(model, batch, targets_only=targets_only)
            weight += batch.weight
    total, weights = feed.ranks.sum([float(nll), weight])
    return HeldOut(nll=total, weight=weights, rows=len(chosen))


def evenly_spaced(rows: int, count: int) -> list[int]:
    """``count`` ascending numbers spread evenly over ``range(rows)``; all for 0 or a ``count`` above ``rows``."""
    wanted = rows if count == 0 else min(count, rows)
    return [index * rows // wanted for index in range(wanted)]


def pack_in_order(split: Split, chosen: Sequence[int], seq_len: int) -> list[PackedRow]:
    """Neighbouring samples share a row while they fit into ``seq_len`` tokens; 0: one sample per row.

    Best-fit packing would only save a few forward passes: every packing gives the same loss.
    """
    lengths = np.asarray(split.lengths)
    packed: list[PackedRow] = []
    open_row: list[tuple[int, int]] = []
    used = 0
    for row in chosen:
        length = int(lengths[row])
        if open_row and used + length > seq_len:
            packed.append(PackedRow(samples=tuple(open_row), tokens=used))
            open_row, used = [], 0
        open_row.append((0, row))
        used += length
    return [*packed, PackedRow(samples=tuple(open_row), tokens=used)] if open_row else packed


def dealt(packed: Sequence[PackedRow], micro_size: int, ranks: Ranks) -> Iterator[Sequence[PackedRow]]:
    """This rank's micro-batches; ranks take them in turn. Every rank has the same number; the last may be empty."""
    groups = [packed[start : start + micro_size] for start in range(0, len(packed), micro_size)]
    for turn in range(math.ceil(len(groups) / ranks.readers)):
        index = turn * ranks.readers + ranks.reader
        yield groups[index] if index < len(groups) else ()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Inside the context, no gradients, nothing compiled and every module in evaluation mode; then its earlier mode.

    It does not use inference_mode, because autograd could not use tensors that ZeRO-3 gathers inside that mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), eager():
            yield
    finally:
        for module, training in modes:
            module.training = training
