"""The logits of the positions that predict a target, for objectives that need the logits themselves.

Shape suffixes: N positions whose logits are computed, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data_prep.interop import IGNORE
from train.batches.batch import Batch, forward_kwargs


@dataclass(frozen=True)
class TargetLogits:
    logits_NV: torch.Tensor
    """fp32, whatever the model's dtype."""
    labels_N: torch.Tensor
    """int64: the token that each position predicts; -100: no target."""
    weights_N: torch.Tensor | None
    """fp32: the weight of each target; None: all weights are 1."""

    def weighted_sum(self, values_N: torch.Tensor) -> torch.Tensor:
        """The sum over targets of weight * value; values at positions without a target are ignored."""
        targets = self.labels_N != IGNORE
        chosen = values_N[targets]
        return chosen.sum() if self.weights_N is None else (chosen * self.weights_N[targets]).sum()


def target_logits(model: torch.nn.Module, batch: Batch, *, targets_only: bool) -> TargetLogits:
    """Call ``model`` once. ``targets_only``: in the flat layout, return only positions that predict a target."""
    if targets_only and batch.predicted is not None:
        predicted = batch.predicted
        logits = model(**forward_kwargs(batch), logits_to_keep=predicted.places).logits
        return TargetLogits(logits.flatten(0, -2).float(), predicted.ids, predicted.weights)
    logits = model(**forward_kwargs(batch)).logits
    weights = batch.next_weights
    flat_weights = None if weights is None else weights.flatten()
    return TargetLogits(logits.flatten(0, -2).float(), batch.next_labels.flatten(), flat_weights)
