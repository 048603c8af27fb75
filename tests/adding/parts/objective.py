"""Weighted supervised tuning with a focal term: w (1 - p)^gamma * -log p (Lin et al. 2017, equation 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from data_prep.stream.stream import GlobalStep
from train.batches.batch import Batch
from train.objectives.logits import target_logits
from train.objectives.types import Sums


@dataclass(frozen=True)
class Focal:
    gamma: float
    targets_only: bool

    def denominator(self, step: GlobalStep) -> float:
        return step.weight

    def sums(self, model: torch.nn.Module, batch: Batch) -> Sums:
        found = target_logits(model, batch, targets_only=self.targets_only)
        labels_N1 = found.labels_N.clamp(min=0)[:, None]
        log_p_N = found.logits_NV.log_softmax(-1).gather(1, labels_N1)[:, 0]
        objective = found.weighted_sum((1 - log_p_N.exp()) ** self.gamma * -log_p_N)
        return Sums(objective, {"loss": found.weighted_sum(-log_p_N).detach(), "focal": objective.detach()})


def make(settings: Any, *, targets_only: bool, frozen: torch.nn.Module | None) -> Focal:
    return Focal(settings.gamma, targets_only)
