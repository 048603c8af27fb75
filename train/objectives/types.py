"""The interface of an objective for training, ``verify`` and the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from data_prep.stream.stream import GlobalStep
from train.batches.batch import Batch


@dataclass(frozen=True)
class Sums:
    """Sums over the samples of one micro-batch. The run adds them over a step and divides by the denominator."""

    objective: torch.Tensor
    """The sum to minimise: an fp32 scalar with a graph, also for a micro-batch without targets, because the backward
    pass of sharded parameters is collective."""
    reported: Mapping[str, torch.Tensor]
    """fp32 scalars without a graph. The run logs NAME as ``train/NAME``; ``loss`` is always present."""


class Objective(Protocol):
    """A function of the global batch: the sum over all micro-batches, divided by a denominator.

    The denominator belongs to the whole batch, and the sums add up over any division of the batch. So an optimizer step
    is one function of its global batch, for any number of ranks, any micro-batches and any packing.
    """

    def denominator(self, step: GlobalStep) -> float:
        """The divisor of the step's sums. It comes from ``step`` alone, so that every rank knows it at once."""
        ...

    def sums(self, model: torch.nn.Module, batch: Batch) -> Sums:
        """The sums of one micro-batch. Calls ``model`` exactly once, because a ZeRO-3 forward pass is collective."""
        ...
