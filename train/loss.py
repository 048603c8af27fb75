"""The one loss: sum of the negative log-likelihoods of supervised tokens.

It is divided by the number of supervised tokens of the whole global batch (every rank knows it from the plan), never
by a local count, so that an optimizer step is one function of the global batch: the mean of per-rank means is not.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from data_prep.interop import IGNORE
from train.batch import Batch, forward_kwargs


def token_nll_sum(model: torch.nn.Module, batch: Batch, *, targets_only: bool) -> torch.Tensor:
    """Sum over supervised tokens of -log p(token | what precedes it in its sample), an fp32 scalar.

    ``targets_only``: in the flat layout, compute logits only at positions that predict a supervised token; the same
    value and gradients. A batch without targets gives 0 with a graph, because sharded backward is collective.
    """
    next_labels = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORE)
    kwargs = forward_kwargs(batch)
    if targets_only and batch.segments is not None:
        positions = (next_labels[0] != IGNORE).nonzero()[:, 0]
        if not len(positions):
            positions = torch.zeros(1, dtype=torch.long, device=next_labels.device)
        kwargs["logits_to_keep"] = positions
        next_labels = next_labels[:, positions]
    logits: torch.Tensor = model(**kwargs).logits
    if not batch.targets:
        return logits.float().sum() * 0.0
    return functional.cross_entropy(
        logits.flatten(0, 1).float(), next_labels.flatten(), ignore_index=IGNORE, reduction="sum"
    )
