"""Gathers the keys and values of samples that share a prefix, and adds up the samples' gradients of it in fp32.

A prefix token is read once by its own segment and once by every sample that shares it (train/batches/batch.py), so its
gradient is a sum over them. The backward pass of ``index_select`` rounds that sum to the gradient's dtype after every
term, 0.55% of a bf16 sum of 20 and 1.7% of one of 200, and on CUDA adds by atomics in no fixed order. Here a sum is
taken in fp32, one use after the other in the row's order, and rounded once (docs/correctness.md has the errors).

Which token is used where is known when the row is collated, so that the backward pass reads nothing back from a GPU and
its shapes come from the host. Both directions are operators of their own, which compiled blocks call as a whole.

Shape suffixes: T tokens of the row, G gathered keys, P tokens whose number of uses is not one, E uses of these tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import library

CHUNK_ELEMENTS = 2**23
"""Elements of a gradient that are copied to fp32 at once (32 MiB): heads beyond it wait their turn."""


Put = Callable[[np.ndarray[Any, Any]], torch.Tensor]
"""Makes a tensor of an array, on the device of the row."""


class Uses(NamedTuple):
    """Where the gathered keys use each token of the row: what the backward pass of the gather needs."""

    first: torch.Tensor
    """int64 [T]: the first place in the gathered keys; 0 for a token without a use."""
    several: torch.Tensor
    """int64 [P], ascending: the tokens with no use or with more than one."""
    places: torch.Tensor
    """int64 [E]: all places of the tokens ``several``, token by token, ascending within a token."""
    bounds: torch.Tensor
    """int64 [P + 1]: the index in ``places`` where each token begins, and E."""


def uses_of(index: np.ndarray[Any, Any], tokens: int, put: Put = torch.from_numpy) -> Uses:
    """The uses of a row of ``tokens`` by the gather ``index`` ([G] of 0..tokens-1); ``put`` makes the tensors."""
    order = np.argsort(index, kind="stable")
    counts = np.bincount(index, minlength=tokens)
    begins = np.cumsum(counts) - counts
    several = np.flatnonzero(counts != 1)
    first = np.where(counts > 0, order[np.minimum(begins, len(order) - 1)], 0)
    bounds = np.concatenate([[0], np.cumsum(counts[several])])
    arrays = (first, several, order[counts[index[order]] != 1], bounds)
    return Uses(*(put(each.astype(np.int64, copy=False)) for each in arrays))


def gather(row: torch.Tensor, index: torch.Tensor, uses: Uses) -> torch.Tensor:
    """Keys or values [B, K, T, D] of the row -> [B, K, G, D] at ``index``, int64 [G]; ``uses`` are those of ``index``.

    The gradient of a token is the sum over its uses in fp32 (fp64 for fp64), rounded once, the same bits every time.
    """
    gathered: torch.Tensor = _gather(row, index, *uses)
    return gathered


@library.custom_op("attention::gather_keys", mutates_args=())
def _gather(
    row: torch.Tensor,
    index: torch.Tensor,
    first: torch.Tensor,
    several: torch.Tensor,
    places: torch.Tensor,
    bounds: torch.Tensor,
) -> torch.Tensor:
    return row.index_select(2, index)


@library.custom_op("attention::sum_of_uses", mutates_args=())
def _add_up(
    gradient: torch.Tensor, first: torch.Tensor, several: torch.Tensor, places: torch.Tensor, bounds: torch.Tensor
) -> torch.Tensor:
    """[B, K, G, D] -> [B, K, T, D]: a copy for every token that is used once, a sum for the others."""
    total = gradient.index_select(2, first)
    if not len(several):
        return total
    exact = torch.promote_types(gradient.dtype, torch.float32)
    heads = max(1, CHUNK_ELEMENTS // max(1, len(places) * gradient.shape[0] * gradient.shape[3]))
    for into, part in zip(torch.split(total, heads, 1), torch.split(gradient, heads, 1), strict=True):
        used = part.permute(2, 0, 1, 3).index_select(0, places).to(exact)
        # Sequential within a token on CPU and CUDA: no atomics. unsafe: the bounds are not read back to be checked.
        sums = torch.segment_reduce(used, "sum", offsets=bounds, axis=0, unsafe=True, initial=0)
        into.index_copy_(2, several, sums.to(gradient.dtype).permute(1, 2, 0, 3))
    return total


@_gather.register_fake
def _(row: torch.Tensor, index: torch.Tensor, *uses: torch.Tensor) -> torch.Tensor:
    return row.new_empty((row.shape[0], row.shape[1], index.shape[0], row.shape[3]))


@_add_up.register_fake
def _(gradient: torch.Tensor, first: torch.Tensor, *uses: torch.Tensor) -> torch.Tensor:
    return gradient.new_empty((gradient.shape[0], gradient.shape[1], first.shape[0], gradient.shape[3]))


def _keep(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[2:])


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return _add_up(gradient, *ctx.saved_tensors), None, None, None, None, None


_gather.register_autograd(_backward, setup_context=_keep)
