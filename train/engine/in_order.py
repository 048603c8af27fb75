"""Sums of gradients whose bits do not depend on the number of ranks (``compute.reproducible``).

A sum of floating-point numbers depends on its order, and DeepSpeed's order depends on the ranks: each adds up its own
micro-batches first (stages 0 and 1), or the ranks are added before the micro-batches (2 and 3). Here the order is that
of the micro-batches of the step, element by element, whoever computed them. The micro-batches are dealt to the ranks in
turn (``Feed.dealt``), so the k-th ones of ranks 0, 1, 2, ... follow each other. After every backward pass the owner of
an element gets its gradients unsummed, in the dtype in which they were computed, and adds them one by one, in rank
order, to a total in fp32. One rank that computes all micro-batches does the same additions in the same order.

Nothing is rounded but by these additions, and a rank sends as many elements as a reduce-scatter does. It holds 4 bytes
per owned element for the totals, as stages 2 and 3 do, and at most three buckets while it exchanges: a bucket goes
before it would overflow, a larger gradient by itself, and a rank that owns more of it than its share, as at stage 2,
gets it in several rounds. train/plan/buffers.py counts the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.stage_1_and_2 import GradPartitionBufferGroup

from conf.whole_numbers import ceil_div
from train.engine.fragments import flat_states, owned_places
from train.engine.parameters import elements
from train.plan.buffers import SQUARED
from train.ranks.group import Ranks

TAKING = (
    "process_gradients",  # stage 2, and 1 in fp32; would also allocate DeepSpeed's buckets
    "reduce_ready_partitions_and_remove_grads",  # stage 3
)
"""Methods of DeepSpeed's optimizers that its hooks on gradients call."""

ENDING = (
    "overlapping_partition_gradients_reduce_epilogue",
    "update_hp_grads",  # stage 1 in bf16
)
"""Methods that it calls after a backward pass."""


def intercept(optimizer: Any, take: Callable[..., None], end: Callable[[], None]) -> None:
    """Have a ZeRO optimizer hand gradients over instead of keeping or reducing them.

    ``take(parameter, ...)`` is called when ``parameter.grad`` is ready; ``end()`` after every backward pass. Stage 0,
    and stage 1 in bf16, call neither before the end, and leave gradients in their parameters.
    """
    vars(optimizer).update(dict.fromkeys(TAKING, take), **dict.fromkeys(ENDING, lambda **_: end()))


@dataclass(frozen=True)
class _Round:
    """What a bucket of parameters sends and keeps in one exchange."""

    pieces: list[tuple[int, int, int]]
    """(place in the bucket, first element, elements), for rank 0, then rank 1, and so on."""
    counts: list[int]
    """Elements for every rank."""
    kept: list[tuple[int, int, int]]
    """(parameter, first of this rank's elements of it, elements) that this rank gets, in the order of the bucket."""


class InOrder:
    """The totals of one rank, by the flat tensors that DeepSpeed hands to the base optimizer. Methods are collective.

    Takes over the gradients of ``optimizer``, which must be DeepSpeed's of stage 2 or 3 without offloading.
    ``bucket``: elements that are exchanged at once, at least.
    """

    def __init__(self, optimizer: Any, parameters: Mapping[str, torch.nn.Parameter], ranks: Ranks, bucket: int) -> None:
        self.optimizer, self.ranks, self.bucket = optimizer, ranks, bucket
        self.parameters = dict(parameters)
        self.elements = elements(parameters.values())
        for each in getattr(optimizer, "ipg_buckets", {}).values():
            each.buffer = None  # stage 3 keeps one for the reductions that it will not make
        flats = flat_states(optimizer)
        self.totals = _zeros(optimizer, [flat.numel() for flat in flats])
        self._index = {id(parameter): index for index, parameter in enumerate(parameters.values())}
        owned = np.zeros((len(parameters), 2), dtype=np.int64)
        self._own: dict[int, torch.Tensor] = {}
        names = {name: index for index, name in enumerate(parameters)}
        numbers = {id(flat): number for number, flat in enumerate(flats)}
        for name, place in owned_places(parameters, optimizer, ranks, "share"):
            owned[names[name]] = place.start, place.numel
            total = self.totals[numbers[id(place.flat)]]
            self._own[names[name]] = total.narrow(0, place.offset, place.numel)
        self._owned = np.stack(ranks.gather(owned))
        """[world, parameters, 2] First element and number of elements that each rank owns."""
        self._routes: dict[tuple[int, ...], list[_Round]] = {}
        self._pending: list[tuple[int, torch.Tensor]] = []
        intercept(optimizer, self._take, self._exchange)

    def _take(self, parameter: torch.nn.Parameter, *_: object) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad.detach().reshape(-1), None
        if self._held() + gradient.numel() > self.bucket:
            self._exchange()
        self._pending.append((self._index[id(parameter)], gradient))
        if self._held() >= self.bucket:
            self._exchange()

    def _held(self) -> int:
        return sum(gradient.numel() for _, gradient in self._pending)

    @torch.no_grad()
    def _exchange(self) -> None:
        """Send what is pending to its owners, and add what arrives."""
        pending, self._pending = self._pending, []
        rounds = self._route(tuple(index for index, _ in pending)) if pending else []
        for number, each in enumerate(rounds, 1):
            sent = torch.cat([pending[place][1].narrow(0, start, count) for place, start, count in each.pieces])
            if number == len(rounds):
                pending.clear()
            received = self._received(sent, each.counts)
            del sent
            self._add(received, each.kept)
            del received

    def _received(self, sent: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """[world, elements for this rank] from all ranks."""
        world, mine = self.ranks.world, counts[self.ranks.rank]
        if world == 1:
            return sent[None]
        received, size = sent.new_empty((world, mine)), sent.element_size()
        # As bytes, because gloo does not know every dtype.
        dist.all_to_all_single(
            received.view(-1).view(torch.uint8),
            sent.view(torch.uint8),
            [mine * size] * world,
            [count * size for count in counts],
        )
        return received

    def _add(self, received: torch.Tensor, kept: list[tuple[int, int, int]]) -> None:
        if not kept:
            return
        own = [self._own[index].narrow(0, start, count) for index, start, count in kept]
        total = torch.cat(own)
        for gradients in received:
            total += gradients
        torch._foreach_copy_(own, list(torch.split(total, [each.numel() for each in own])))

    def _route(self, bucket: tuple[int, ...]) -> list[_Round]:
        """The rounds of these parameters; buckets are the same in every backward pass.

        In a round no rank gets more than its share of the bucket from each rank, and a rounding of each parameter: so
        one is enough at stage 3, where parameters are divided evenly.
        """
        if bucket not in self._routes:
            owned = self._owned[:, list(bucket)]
            ends = np.cumsum(owned[:, :, 1], axis=1)
            """[world, places] Where a rank's part of a parameter ends among all that it owns of the bucket."""
            share = ceil_div(int(ends[:, -1].sum()), self.ranks.world) + len(bucket)
            self._routes[bucket] = [
                self._round(bucket, owned, ends, first, first + share) for first in range(0, int(ends.max()), share)
            ]
        return self._routes[bucket]

    def _round(
        self, bucket: tuple[int, ...], owned: np.ndarray[Any, Any], ends: np.ndarray[Any, Any], first: int, last: int
    ) -> _Round:
        """The round of elements ``first`` to ``last`` of what every rank owns of the bucket."""
        begins = ends - owned[:, :, 1]
        low, high = np.maximum(begins, first), np.minimum(ends, last)
        chosen = np.argwhere(high > low).tolist()
        offsets, counts = low - begins, np.maximum(high - low, 0)
        pieces = [
            (place, int(owned[rank, place, 0] + offsets[rank, place]), int(counts[rank, place]))
            for rank, place in chosen
        ]
        kept = [
            (bucket[place], int(offsets[rank, place]), int(counts[rank, place]))
            for rank, place in chosen
            if rank == self.ranks.rank
        ]
        return _Round(pieces, [int(each) for each in counts.sum(axis=1)], kept)

    def clip(self, limit: float) -> float:
        """Scale the totals to a global norm of at most ``limit`` (0: as they are); returns the norm before."""
        norm = order_free_norm(self.totals, self.ranks, self.elements)
        if limit and math.isfinite(norm) and norm > limit:
            for total in self.totals:
                total.mul_(limit / norm)
        return norm

    def hand_over(self) -> None:
        """Give the totals to DeepSpeed as the gradients of its next step, which stage 2 then does not copy. Not
        collective."""
        # In pieces, because DeepSpeed looks at each for what is not finite, through copies.
        self.optimizer.averaged_gradients = {
            number: GradPartitionBufferGroup(torch.split(total, SQUARED), total)
            for number, total in enumerate(self.totals)
        }

    def clear(self) -> None:
        """Forget the totals. Not collective."""
        for total in self.totals:
            total.zero_()

    def gradients(self) -> dict[str, torch.Tensor]:
        """The totals of all parameters by name, whole, fp32 on the CPU, on every rank."""
        found = {}
        for index, (name, parameter) in enumerate(self.parameters.items()):
            shape = getattr(parameter, "ds_shape", parameter.shape)
            whole = torch.zeros(math.prod(shape), device=self.totals[0].device)
            if index in self._own:
                start, count = self._owned[self.ranks.rank, index]
                whole[start : start + count] = self._own[index]
            if self.ranks.world > 1:
                dist.all_reduce(whole)  # the others add zeros
            found[name] = whole.view(shape).cpu()
        return found


def _zeros(optimizer: Any, sizes: Sequence[int]) -> list[torch.Tensor]:
    """fp32 zeros of these sizes; at stage 3 they are the memory that DeepSpeed holds for sums of its own."""
    held = getattr(optimizer, "grad_partitions_flat_buffer", None)
    if held is None or held.dtype != torch.float32 or held.numel() != sum(sizes):
        device = flat_states(optimizer)[0].device
        return [torch.zeros(size, device=device) for size in sizes]
    return list(torch.split(held.zero_(), list(sizes)))


@torch.no_grad()
def order_free_norm(parts: Sequence[torch.Tensor], ranks: Ranks, count: int) -> float:
    """The Euclidean norm of all ``parts`` (fp32, 1-D) of all ranks: the same bits however their elements are divided.

    ``count``: an upper bound of the number of elements of all ranks that are not 0. The squares are added up as
    integers, which have no order: with the power of two above the largest element as the unit, a square is exact in
    float64, and its first 2b bits, b = 62 - bits of ``count``, are two integers, whose sums fit into 63 bits. What is
    cut off is less than 4 * count * 2^-2b of the sum (2^-60 of it for 2^20 elements, 2^-23 for 2^33). inf if an element
    is not finite.
    """
    # By its ends, because the absolute values would be a copy.
    ends = [end.abs() for part in parts if part.numel() for end in torch.aminmax(part)]
    largest = torch.stack(ends or [parts[0].new_zeros(())]).max()
    largest = torch.where(largest.isfinite(), largest, torch.inf).double()
    if ranks.world > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    bound = float(largest)
    if not bound or math.isinf(bound):
        return bound
    exponent, bits = math.frexp(bound)[1], 62 - count.bit_length()
    sums = torch.zeros(2, dtype=torch.int64, device=parts[0].device)
    for part in parts:
        for piece in torch.split(part, SQUARED):
            squares = piece.double().mul_(2.0**-exponent).square_().mul_(2.0**bits)
            first = squares.floor()
            sums[0] += first.to(torch.int64).sum()
            sums[1] += squares.sub_(first).mul_(2.0**bits).to(torch.int64).sum()
    if ranks.world > 1:
        dist.all_reduce(sums)
    high, low = (int(each) for each in sums.tolist())
    return math.sqrt(((high << bits) + low) / (1 << (2 * bits))) * 2.0**exponent
