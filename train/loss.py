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


@dataclass(frozen=True)
class LossSums:
    nll: torch.Tensor
    """Sum of -log p(target), an fp32 scalar: what is reported."""
    objective: torch.Tensor
    """Sum of what is minimised, an fp32 scalar with a graph: ``nll``, smoothed and with the z-loss where asked for."""


def token_nll_sum(model: torch.nn.Module, batch: Batch, *, targets_only: bool) -> torch.Tensor:
    """Sum over supervised tokens of -log p(token | what precedes it in its sample), an fp32 scalar.

    ``targets_only``: in the flat layout, compute logits only at positions that predict a supervised token; the same
    value and gradients. A batch without targets gives 0 with a graph, because sharded backward is collective.
    """
    return _nll(*_logits(model, batch, targets_only), batch)


def loss_sums(model: torch.nn.Module, batch: Batch, *, targets_only: bool, loss: LossConfig) -> LossSums:
    """``token_nll_sum`` and what is minimised instead of it.

    Label smoothing (Szegedy et al. 2016, section 7): a target's share ``a`` is spread evenly over the vocabulary,
    (1 - a) * -log p(target) + a * mean over V of -log p. z-loss (Chowdhery et al. 2022, PaLM, section 5): z * log(Z)^2
    with Z the softmax's denominator.
    """
    logits_NV, labels_N = _logits(model, batch, targets_only)
    nll = _nll(logits_NV, labels_N, batch)
    objective = nll
    if loss.label_smoothing and batch.targets:
        objective = functional.cross_entropy(
            logits_NV, labels_N, ignore_index=IGNORE, reduction="sum", label_smoothing=loss.label_smoothing
        )
    if loss.z_loss and batch.targets:
        objective = objective + loss.z_loss * logits_NV[labels_N != IGNORE].logsumexp(-1).square().sum()
    return LossSums(nll=nll.detach(), objective=objective)


def _logits(model: torch.nn.Module, batch: Batch, targets_only: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 logits [N, V], whatever the model computes in, and the labels [N] of what they predict."""
    next_labels = batch.next_labels
    kwargs = forward_kwargs(batch)
    if targets_only and batch.segments is not None:
        positions = (next_labels[0] != IGNORE).nonzero()[:, 0]
        if not len(positions):
            positions = torch.zeros(1, dtype=torch.long, device=next_labels.device)
        kwargs["logits_to_keep"] = positions
        next_labels = next_labels[:, positions]
    logits: torch.Tensor = model(**kwargs).logits
    return logits.flatten(0, 1).float(), next_labels.flatten()


def _nll(logits_NV: torch.Tensor, labels_N: torch.Tensor, batch: Batch) -> torch.Tensor:
    if not batch.targets:
        return logits_NV.sum() * 0.0
    return functional.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE, reduction="sum")
