"""Ulysses: ranks that share a row exchange their slices of it for heads (Jacobs et al. 2023, section 3).

Everything in a model but attention works token by token, so a rank computes its slice alone; attention needs the row:

    rank 0   tokens 0..t     all heads            all tokens   the first H / P heads
    rank 1   tokens t..2t    all heads     <->    all tokens   the next H / P heads

One all-to-all takes queries, keys and values there, one takes the result back; the backward pass makes the same two.
DeepSpeed's own (deepspeed.sequence.layer of 0.19.8) makes four, and refuses fewer key heads than ranks.

Shape suffixes: T tokens of the row, t of a slice, H query heads, K key heads, D head size, P ranks, n heads of queries,
keys and values together that one rank attends with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from train.families import key_repeats


@dataclass(frozen=True)
class Exchange:
    """What the ranks that share a row do around attention. Both methods are collective and have a backward pass."""

    size: int
    """P. Divides the query heads (train/model/build.py checks)."""
    all_to_all: Callable[[torch.Tensor], torch.Tensor]
    """Entry p of the first dimension goes to rank p, whose entry for this rank comes back in its place."""

    def to_heads(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query [1, H, t, D], key and value [1, K, t, D] of this slice -> the whole row's, [1, H / P, T, D] and so on.

        Where P does not divide the key heads, each is sent several times (train/plan/activations.py), which gives every
        rank the key heads of its query heads, in the grouping that attention expects.
        """
        repeats = key_repeats(key.shape[1], self.size)
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        parts = [self._by_rank(each) for each in (query, key, value)]
        row_TnD = self.all_to_all(torch.cat(parts, dim=2)).flatten(0, 1)
        q_TnD, k_TnD, v_TnD = torch.split(row_TnD, [each.shape[2] for each in parts], dim=1)
        return q_TnD.transpose(0, 1)[None], k_TnD.transpose(0, 1)[None], v_TnD.transpose(0, 1)[None]

    def _by_rank(self, heads: torch.Tensor) -> torch.Tensor:
        """[1, heads, t, D] -> [P, t, heads / P, D]."""
        return heads.reshape(self.size, -1, *heads.shape[2:]).transpose(1, 2)

    def to_tokens(self, out_THD: torch.Tensor) -> torch.Tensor:
        """The whole row under this rank's heads, [T, H / P, D] -> this slice under all heads, [t, H, D]."""
        out_PtHD = self.all_to_all(out_THD.reshape(self.size, -1, *out_THD.shape[1:]))
        return out_PtHD.transpose(0, 1).flatten(1, 2)


def over(group: dist.ProcessGroup, size: int) -> Exchange:
    """The exchange of the ``size`` ranks of ``group``."""
    return Exchange(size, lambda x: _AllToAll.apply(x, group))  # type: ignore[no-untyped-call]


class _AllToAll(torch.autograd.Function):
    """The exchange is its own inverse and transpose, so gradients travel by the same one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        sent = x.contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return _AllToAll.apply(gradients[0], ctx.group), None  # type: ignore[no-untyped-call]
