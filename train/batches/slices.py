"""Sequence parallelism: consecutive ranks work on the same rows, each on an equal slice of their tokens.

It serves documents whose activations do not fit one GPU. For the data, a team of P ranks acts as one rank: its ranks
read the same rows, and ``Ranks.reader`` of ``Ranks.readers`` replaces the rank. Exactly one rank computes the loss of a
token, so the sums over ranks, the engine and the denominator of the loss do not change. Slices exchange data only in
attention (train/attention/exchange.py).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch.nn import functional

from conf.errors import InternalError
from conf.whole_numbers import ceil_div
from data_prep.interop import IGNORE
from train.attention.exchange import over
from train.batches.batch import Batch, Keys, Predicted
from train.plan import readers
from train.ranks.group import GROUP_TIMEOUT, Ranks


def in_teams(ranks: Ranks, size: int) -> Ranks:
    """``ranks`` divided into teams of ``size`` consecutive ranks. Collective; ``size`` above 1 needs the process group.

    Raises ConfigError if ``size`` does not divide the number of ranks.
    """
    readers(ranks.world, size)
    if size == 1:
        return ranks
    team, _ = dist.new_subgroups(size, timeout=GROUP_TIMEOUT)  # type: ignore[no-untyped-call]
    return replace(ranks, slices=size, team=team)


def share(batch: Batch, ranks: Ranks) -> Batch:
    """This rank's slice of ``batch``, which every rank of its team has collated; without teams ``batch`` itself.

    On the host: how many targets fall into a slice is read from its tensors.
    """
    if ranks.team is None:
        return batch
    return replace(sliced(batch, ranks.slice, ranks.slices), exchange=over(ranks.team, ranks.slices))


def sliced(batch: Batch, index: int, count: int) -> Batch:
    """Slice ``index`` of a flat batch that is cut into ``count`` slices of ceil(T / count) tokens.

    The bounds of samples and keys stay those of the whole row, because attention sees the whole row. Padding at the end
    of the last slices is a separate segment: it predicts nothing, and no sample sees it. ``labels`` has one entry more
    than ``input_ids``, because the last token of a slice predicts the first token of the next. Only the first slice
    lists the samples, so that the ledger counts each sample once.
    """
    if batch.segments is None or batch.predicted is None:
        raise InternalError("ranks cannot share padded rows; set data.pack=exact or compute.sequence_parallel=1")
    tokens = batch.input_ids.shape[1]
    length = ceil_div(tokens, count)
    filling = length * count - tokens
    start, end = index * length, (index + 1) * length

    def cut(row: torch.Tensor, *, more: int = 0, value: int = 0) -> torch.Tensor:
        return functional.pad(row, (0, filling + more), value=value)[:, start : end + more]

    predicted = _inside(batch.predicted, start, end)
    return replace(
        batch,
        input_ids=cut(batch.input_ids),
        labels=cut(batch.labels, more=1, value=IGNORE),
        position_ids=cut(batch.position_ids),
        segments=_with_filling(batch.segments, tokens, filling),
        longest=max(batch.longest, filling),
        keys=None if batch.keys is None else _keys_with_filling(batch.keys, tokens, filling),
        uids=batch.uids if index == 0 else (),
        tokens=batch.tokens if index == 0 else 0,
        targets=int((predicted.ids != IGNORE).sum()),
        weight=_weight(predicted),
        weights=None if batch.weights is None else cut(batch.weights, more=1),
        predicted=predicted,
    )


def _inside(predicted: Predicted, start: int, end: int) -> Predicted:
    """The positions from ``start`` to ``end``, relative to ``start``; if there are none, one without a target."""
    inside = (predicted.places >= start) & (predicted.places < end)
    if not inside.any():
        nothing = None if predicted.weights is None else torch.zeros_like(predicted.weights[:1])
        return Predicted(torch.zeros_like(predicted.places[:1]), torch.full_like(predicted.ids[:1], IGNORE), nothing)
    weights = None if predicted.weights is None else predicted.weights[inside]
    return Predicted(predicted.places[inside] - start, predicted.ids[inside], weights)


def _weight(predicted: Predicted) -> float:
    """The sum of the weights of the targets."""
    if predicted.weights is None:
        return float((predicted.ids != IGNORE).sum())
    return float(predicted.weights.sum(dtype=torch.float64))


def _with_filling(bounds: torch.Tensor, end: int, filling: int) -> torch.Tensor:
    """``bounds``, which end at ``end``, followed by a segment of ``filling`` pad tokens."""
    return functional.pad(bounds, (0, 1), value=end + filling) if filling else bounds


def _keys_with_filling(keys: Keys, tokens: int, filling: int) -> Keys:
    """``keys`` of a row of ``tokens``, followed by the keys of the ``filling`` pad tokens."""
    if not filling:
        return keys
    index, own = keys.index, torch.arange(tokens, tokens + filling)
    bounds = _with_filling(keys.segments, index.shape[0], filling)
    first = torch.cat([keys.uses.first, own + (index.shape[0] - tokens)])
    return Keys(torch.cat([index, own]), bounds, max(keys.longest, filling), keys.uses._replace(first=first))
