"""The one loss: the negative log-likelihoods of supervised tokens, summed.

It is divided by the number of supervised tokens of the whole global batch (every rank knows it from the plan), never
by a local count, so that an optimizer step is one function of the global batch: the mean of per-rank means is not.
Options of ``loss`` add terms over the same targets, so the same division holds for them.

Shape suffixes: N positions whose logits are computed, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from conf.schema import LossConfig
from data_prep.interop import IGNORE
from train.batch import Batch, forward_kwargs
from train.head import losses_for_logits, plain_head

PLAIN = LossConfig()


@dataclass(frozen=True)
class LossSums:
    nll: torch.Tensor
    """Sum of -log p(target), an fp32 scalar: what is reported."""
    objective: torch.Tensor
    """Sum of what is minimised, an fp32 scalar with a graph: ``nll``, smoothed and with the z-loss where asked for."""


def token_nll_sum(model: torch.nn.Module, batch: Batch, *, targets_only: bool) -> torch.Tensor:
    """Sum over supervised tokens of -log p(token | what precedes it in its sample), an fp32 scalar with a graph."""
    return loss_sums(model, batch, targets_only=targets_only, loss=PLAIN).objective


def loss_sums(model: torch.nn.Module, batch: Batch, *, targets_only: bool, loss: LossConfig) -> LossSums:
    """The sums over the supervised tokens of ``batch``.

    Label smoothing (Szegedy et al. 2016, section 7): a target's share ``a`` is spread evenly over the vocabulary,
    (1 - a) * -log p(target) + a * mean over V of -log p. z-loss (Chowdhery et al. 2022, PaLM, section 5): z * log(Z)^2
    with Z the softmax's denominator.

    ``targets_only``: in the flat layout, the head computes only the positions that predict a supervised token, in
    chunks where it is a plain linear layer (train/head.py); the same values and gradients. A batch without targets
    gives 0 with a graph, because sharded backward is collective.
    """
    if not targets_only or batch.predicted is None:
        return _from_logits(model(**forward_kwargs(batch)).logits, batch.next_labels.flatten(), batch, loss)
    predicted, head = batch.predicted, plain_head(model)
    if head is None or not batch.targets:
        logits = model(**forward_kwargs(batch), logits_to_keep=predicted.places).logits
        return _from_logits(logits, predicted.ids, batch, loss)
    with losses_for_logits(head, predicted.places, predicted.ids, loss):
        nll, objective = model(**forward_kwargs(batch)).logits.unbind()
    return LossSums(nll=nll.detach(), objective=objective)


def _from_logits(logits: torch.Tensor, labels_N: torch.Tensor, batch: Batch, loss: LossConfig) -> LossSums:
    """From logits that exist, [.., V], in fp32 whatever the model computes in."""
    logits_NV = logits.flatten(0, -2).float()
    if not batch.targets:
        nothing = logits_NV.sum() * 0.0
        return LossSums(nll=nothing.detach(), objective=nothing)
    nll = objective = functional.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE, reduction="sum")
    if loss.label_smoothing:
        objective = functional.cross_entropy(
            logits_NV, labels_N, ignore_index=IGNORE, reduction="sum", label_smoothing=loss.label_smoothing
        )
    if loss.z_loss:
        objective = objective + loss.z_loss * logits_NV[labels_N != IGNORE].logsumexp(-1).square().sum()
    return LossSums(nll=nll.detach(), objective=objective)
