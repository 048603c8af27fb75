"""Sequence parallelism: consecutive ranks work on the same rows, each on an equal slice of their tokens.

For documents whose activations one GPU does not hold. A team of P ranks is to the data what one rank is without it: it
reads the same rows, and ``Ranks.reader`` of ``Ranks.readers`` takes the place of the rank. Every token's loss is
computed on exactly one rank, so the sums over ranks, and with them the engine and the denominator of the loss, stay as
they are. Slices meet in attention only (train/attention/exchange.py).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch.nn import functional

from conf.errors import InternalError
from data_prep.interop import IGNORE
from train.attention.exchange import over
from train.batch import Batch, Keys, Predicted
from train.distributed import GROUP_TIMEOUT, Ranks
from train.plan import readers


def in_teams(ranks: Ranks, size: int) -> Ranks:
    """``ranks`` as teams of ``size`` consecutive ones. Collective; needs the process group if ``size`` is above 1.

    Raises ConfigError if they do not come out even.
    """
    readers(ranks.world, size)
    if size == 1:
        return ranks
    team, _ = dist.new_subgroups(size, timeout=GROUP_TIMEOUT)  # type: ignore[no-untyped-call]
    return replace(ranks, slices=size, team=team)


def share(batch: Batch, ranks: Ranks) -> Batch:
    """This rank's slice of ``batch``, which its whole team has collated; without teams the batch itself."""
    if ranks.team is None:
        return batch
    return replace(sliced(batch, ranks.slice, ranks.slices), exchange=over(ranks.team, ranks.slices))


def sliced(batch: Batch, index: int, count: int) -> Batch:
    """Slice ``index`` of a flat batch cut into ``count`` of ceil(T / count) tokens.

    The bounds of samples and keys stay the whole row's, because attention sees the whole row. What fills up the last
    slices is a segment of its own, predicts nothing and is seen by nothing. ``labels`` has one entry more than
    ``input_ids``: the last token of a slice predicts the first of the next. The first slice alone says which samples
    there are, so that the ledger counts each once.
    """
    if batch.segments is None or batch.predicted is None:
        raise InternalError("padded rows cannot be sliced over ranks: compute.sequence_parallel needs data.pack=exact")
    tokens = batch.input_ids.shape[1]
    length = -(-tokens // count)
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
        predicted=predicted,
    )


def _inside(predicted: Predicted, start: int, end: int) -> Predicted:
    """The places from ``start`` to ``end``, counted from there; if there are none, one that predicts nothing."""
    inside = (predicted.places >= start) & (predicted.places < end)
    if not inside.any():
        return Predicted(torch.zeros_like(predicted.places[:1]), torch.full_like(predicted.ids[:1], IGNORE))
    return Predicted(predicted.places[inside] - start, predicted.ids[inside])


def _with_filling(bounds: torch.Tensor, end: int, filling: int) -> torch.Tensor:
    """``bounds``, which end at ``end``, and a last segment of ``filling``."""
    return functional.pad(bounds, (0, 1), value=end + filling) if filling else bounds


def _keys_with_filling(keys: Keys, tokens: int, filling: int) -> Keys:
    """``keys`` of a row of ``tokens``, and the filling's own."""
    if not filling:
        return keys
    index, own = keys.index, torch.arange(tokens, tokens + filling, device=keys.index.device)
    bounds = _with_filling(keys.segments, index.shape[0], filling)
    return Keys(torch.cat([index, own]), bounds, max(keys.longest, filling))
