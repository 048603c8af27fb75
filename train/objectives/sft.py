"""Supervised fine-tuning: the weighted sum of the negative log-likelihoods of the target tokens.

The denominator is the sum of the weights over the whole global batch, which every rank knows from the step. It is never
a local count, because the mean of the ranks' means is another function of the batch. The options of ``SftObjective``
add terms over the same targets, so they use the same denominator.

Shape suffixes: N positions whose logits are computed, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from conf.schema import SftObjective
from data_prep.interop import IGNORE
from data_prep.stream.stream import GlobalStep
from train.batches.batch import Batch, Predicted, forward_kwargs
from train.objectives.head import losses_for_logits, plain_head
from train.objectives.logits import TargetLogits, target_logits
from train.objectives.types import Sums


@dataclass(frozen=True)
class Sft:
    settings: SftObjective
    targets_only: bool
    """In the flat layout, the head computes only the positions that predict a target, and a plain linear head does so
    in chunks (train/objectives/head.py). Values and gradients are the same."""

    def denominator(self, step: GlobalStep) -> float:
        return step.weight

    def sums(self, model: torch.nn.Module, batch: Batch) -> Sums:
        """``loss`` is the weighted sum of -log p(target), without the options' terms.

        Label smoothing (Szegedy et al. 2016, section 7) spreads the share ``a`` of a target evenly over the vocabulary,
        (1 - a) * -log p(target) + a * mean over V of -log p. z-loss (Chowdhery et al. 2022, PaLM, section 5) is
        z * log(Z)^2, where Z is the softmax's denominator.
        """
        predicted, head = batch.predicted, plain_head(model)
        if not self.targets_only or predicted is None or head is None:
            return self._from_logits(target_logits(model, batch, targets_only=self.targets_only), batch)
        # The head's weight and bias get their gradients in the order of this function on every rank, because ZeRO sums
        # what comes together; nn.Linear's order is another.
        with losses_for_logits(head, predicted if batch.targets else _nothing(predicted), self.settings):
            nll, objective = model(**forward_kwargs(batch)).logits.unbind()
        return Sums(objective, {"loss": nll.detach()})

    def _from_logits(self, target: TargetLogits, batch: Batch) -> Sums:
        if not batch.targets:
            zero = target.logits_NV.sum() * 0.0
            return Sums(zero, {"loss": zero.detach()})
        nll = objective = _cross_entropy(target)
        if self.settings.label_smoothing:
            objective = _cross_entropy(target, self.settings.label_smoothing)
        if self.settings.z_loss:
            log_z_N = target.logits_NV.logsumexp(-1)
            objective = objective + self.settings.z_loss * target.weighted_sum(log_z_N.square())
        return Sums(objective, {"loss": nll.detach()})


def _nothing(predicted: Predicted) -> Predicted:
    """One position with weight 0: losses and gradients of exactly 0, for a batch without targets."""
    place = predicted.places.new_zeros(1)
    return Predicted(place, place, place.new_zeros(1, dtype=torch.float32))


def _cross_entropy(target: TargetLogits, smoothing: float = 0.0) -> torch.Tensor:
    if target.weights_N is None:
        return functional.cross_entropy(
            target.logits_NV, target.labels_N, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing
        )
    losses_N = functional.cross_entropy(
        target.logits_NV, target.labels_N, ignore_index=IGNORE, reduction="none", label_smoothing=smoothing
    )
    return target.weighted_sum(losses_N)


def make(settings: SftObjective, *, targets_only: bool, frozen: torch.nn.Module | None = None) -> Sft:
    return Sft(settings, targets_only)


def token_nll_sum(model: torch.nn.Module, batch: Batch, *, targets_only: bool) -> torch.Tensor:
    """The weighted sum over targets of -log p(token | the tokens before it in its sample), an fp32 scalar with a graph.

    Held-out loss uses this sum, whatever objective the run minimises.
    """
    return make(SftObjective(), targets_only=targets_only).sums(model, batch).objective
