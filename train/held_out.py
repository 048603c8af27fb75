"""Held-out loss: the training loss of rows the run has not seen, token-weighted over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from data_prep.shards import Split
from data_prep.stream import PackedRow
from train.attention import Attention
from train.batch import collate
from train.distributed import Ranks
from train.loss import token_nll_sum
from train.sequence_parallel import share


@dataclass(frozen=True)
class HeldOut:
    """Sums over the chosen rows of one split, the same on every rank."""

    nll: float
    """Sum of the negative log-likelihoods of supervised tokens, nats."""
    tokens: int
    """Supervised tokens."""
    rows: int

    @property
    def loss(self) -> float:
        """Mean nats per supervised token; nan if there was none."""
        return self.nll / self.tokens if self.tokens else math.nan


def held_out_loss(
    model: torch.nn.Module,
    split: Split,
    *,
    attention: Attention,
    seq_len: int,
    micro_size: int,
    max_rows: int,
    pad_id: int,
    ranks: Ranks,
    targets_only: bool = True,
) -> HeldOut:
    """Loss on ``max_rows`` rows (0: all) spread evenly over ``split``. Collective.

    Rows are packed, dealt to the ranks in micro-batches and sliced over those that share them, as in training. Every
    rank makes the same number of forward passes, the last ones perhaps on empty rows, because a ZeRO-3 forward pass is
    collective. The result does not depend on the number of ranks: samples are isolated from one another and sums are
    exact up to rounding.
    """
    chosen = evenly_spaced(split.rows, max_rows)
    packed = pack_in_order(split, chosen, 0 if attention.layout == "padded" else seq_len)
    nll = torch.zeros((), dtype=torch.float64, device=ranks.device)
    targets = 0
    with evaluating(model):
        for rows in dealt(packed, micro_size, ranks):
            whole = collate(rows, [split], layout=attention.layout, pad_id=pad_id, device=ranks.device)
            batch = share(whole, ranks)
            nll += token_nll_sum(model, batch, targets_only=targets_only)
            targets += batch.targets
    total, tokens = ranks.sum([float(nll), float(targets)])
    return HeldOut(nll=total, tokens=int(tokens), rows=len(chosen))


def evenly_spaced(rows: int, count: int) -> list[int]:
    """``count`` row numbers (0 or more than there are: all) spread evenly over ``range(rows)``, ascending."""
    wanted = rows if count == 0 else min(count, rows)
    return [index * rows // wanted for index in range(wanted)]


def pack_in_order(split: Split, chosen: Sequence[int], seq_len: int) -> list[PackedRow]:
    """Neighbours share a row as long as they fit into ``seq_len`` tokens; 0: one sample per row.

    Best-fit packing would save a few forward passes and nothing else: the loss is the same for every packing.
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
    """This rank's micro-batches, dealt in turn; all ranks get equally many, the last ones perhaps without rows."""
    groups = [packed[start : start + micro_size] for start in range(0, len(packed), micro_size)]
    for turn in range(math.ceil(len(groups) / ranks.readers)):
        index = turn * ranks.readers + ranks.reader
        yield groups[index] if index < len(groups) else ()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Inside it, no gradients and every module in evaluation mode; afterwards each module as it was.

    Not inference_mode: tensors that ZeRO-3 gathers inside it could not be used by autograd afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
