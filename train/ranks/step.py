"""What the ranks tell each other of a step, in one small collective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from train.ranks.group import Ranks


class Signs(NamedTuple):
    """What a rank says beside its figures. What the ranks are told is whether any rank said so."""

    stop: bool = False
    """It was asked to stop."""
    writing: bool = False
    """It is still writing its part of a checkpoint."""
    save: bool = False
    """It is time for a checkpoint, by the clock; only the first rank looks at its own."""


@dataclass(frozen=True)
class Told:
    figures: list[float]
    """Sums over micro-batches and ranks, float64: exact, then rounded once, so their order does not matter."""
    signs: Signs
    """Of any rank."""
    uids: npt.NDArray[np.uint64]
    """Of all ranks, in rank and row order; on the first rank alone, empty on the others."""
    own: npt.NDArray[np.float64]
    """[world, O] What each rank says of itself; on the first rank alone, [0, O] on the others."""


AHEAD = len(Signs._fields) + 1
"""Numbers that stand before the ids: the signs, and how many ids there are."""


def tell(
    ranks: Ranks,
    figures: Sequence[torch.Tensor],
    *,
    signs: Signs,
    uids: Sequence[int],
    most: int,
    own: Sequence[float] = (),
) -> Told:
    """Exchange the figures of a step (fp32 on the device, each a scalar or one per micro-batch), the signs and the ids
    of the samples.

    Collective, in the default group: one gather of int64 and one copy to the host, so the device is waited for once.
    ``most``: the largest number of ids of a rank, the same number on all. ``own``: further figures, not summed.
    """
    fed, said = np.array(uids, dtype=np.uint64), np.array([own], dtype=np.float64)
    values = torch.stack([figure.detach().to(torch.float64) for figure in figures])
    if ranks.world == 1:
        return Told(_sums(values.cpu().numpy()[None]), signs, fed, said)
    bits = values.flatten().view(torch.int64)
    head = np.zeros(AHEAD + most, dtype=np.int64)
    head[:AHEAD], head[AHEAD : AHEAD + len(fed)] = (*signs, len(fed)), fed.view(np.int64)
    rest = torch.from_numpy(np.concatenate([head, said[0].view(np.int64)]))
    row = torch.cat([bits, rest.to(bits.device)])
    flat = row.new_empty(ranks.world * len(row))
    dist.all_gather_into_tensor(flat, row)
    table = flat.view(ranks.world, -1)
    count = len(bits)
    seen = table if ranks.is_main else table[:, : count + len(signs)]  # only the first rank needs the ids
    found = seen.cpu().numpy()
    totals = _sums(np.ascontiguousarray(found[:, :count]).view(np.float64).reshape(ranks.world, *values.shape))
    heard = Signs(*(bool(each.any()) for each in found[:, count : count + len(signs)].T))
    if not ranks.is_main:
        return Told(totals, heard, fed[:0], said[:0])
    ids, said = np.split(found[:, count + AHEAD :], [most], axis=1)
    places = np.arange(most)[None, :] < found[:, count + AHEAD - 1, None]
    return Told(totals, heard, ids[places].view(np.uint64), np.ascontiguousarray(said).view(np.float64))


def _sums(values: npt.NDArray[np.float64]) -> list[float]:
    """The sum of every figure from values [world, figures] or [world, figures, micro-batches]."""
    per_figure = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
    plain = [float(each.sum()) for each in per_figure]
    return [
        math.fsum(each.tolist()) if math.isfinite(total) else total
        for each, total in zip(per_figure, plain, strict=True)
    ]
