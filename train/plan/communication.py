"""Bytes that one rank hands to each collective per optimizer step, and whether ZeRO-3 hides under compute.

Read in DeepSpeed 0.19.8 (runtime/zero/stage_1_and_2.py, stage3.py, bf16_optimizer.py) and counted at
torch.distributed over two ranks (tests/train/test_plan_states.py). A ring moves (n - 1) / n of an all-gather's or
reduce-scatter's bytes over each link, twice that for an all-reduce (Patarasuk and Yuan 2009).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from train.parameters import Shape
from train.plan.activations import ELEMENT
from train.plan.blocks import key_repeats, query_heads

PEAK_FLOPS = 989e12
"""Dense bf16 FLOP/s of one H100 or H200 (NVIDIA's data sheet)."""
ASSUMED_MFU, ASSUMED_LINK_EFFICIENCY = 0.5, 0.8
"""For ``hiding_tokens``: what good kernels and NCCL over InfiniBand reach; assumptions, not measurements."""


@dataclass(frozen=True)
class Traffic:
    """Payload bytes of one rank per optimizer step."""

    all_reduce: float = 0.0
    reduce_scatter: float = 0.0
    all_gather: float = 0.0
    all_to_all: float = 0.0

    def on_the_wire(self, world: int) -> float:
        """Bytes that leave one rank in a ring over ``world`` ranks, without those exchanged among a few of them."""
        return (2 * self.all_reduce + self.reduce_scatter + self.all_gather) * (world - 1) / world

    def gib(self) -> dict[str, float]:
        return {each.name: round(getattr(self, each.name) / 2**30, 3) for each in fields(self)}


def traffic(
    *, trained: int, whole: float, stage: int, dtype: str, micro_batches: int, world: int, stays: float = 0.0
) -> Traffic:
    """Gradients and parameters of one step. ``whole``: bytes of all weights of the model, frozen ones included.

    Stages 0 and 1 reduce once per step, stages 2 and 3 every micro-batch. Stage 3 gathers all weights for the forward
    pass of every micro-batch and again for the backward pass, but for the share ``stays`` that it keeps whole in
    between; what is recomputed is whole while it is done again.
    """
    if world == 1:
        return Traffic()
    size = ELEMENT[dtype]
    match stage:
        case 0:
            return Traffic(all_reduce=float(4 * trained))
        case 1:
            return Traffic(all_reduce=float(size * trained), all_gather=float(size * trained))
        case 2:
            return Traffic(all_reduce=float(size * trained * micro_batches), all_gather=float(size * trained))
        case _:
            return Traffic(
                reduce_scatter=float(size * trained * micro_batches),
                all_gather=(2.0 - stays) * whole * micro_batches,
            )


def exchanged(
    model: Mapping[str, Any], shape: Shape, *, tokens: int, slices: int, element: int, recomputed: float
) -> float:
    """Bytes that one rank hands to the all-to-alls of a micro-batch whose row is sliced over ``slices`` ranks.

    In every layer the queries, keys and values of its ``tokens`` and the attention's output, forward and backward, and
    forward once more in the share ``recomputed`` of the blocks (Jacobs et al. 2023, section 3.2). ``element``: bytes of
    one number. A part of 1 / slices stays where it is.
    """
    if slices == 1:
        return 0.0
    heads = query_heads(model)
    key_heads = int(model.get("num_key_value_heads") or heads)
    size = int(model.get("head_dim") or shape.hidden // heads)
    sent = 2 * heads + 2 * key_heads * key_repeats(key_heads, slices)
    return (2.0 + recomputed) * shape.layers * tokens * sent * size * element


def kept_whole(parameters: int, head: int, max_live: int) -> float:
    """Share of the weights that stage 3 does not release after the forward pass.

    Those that are used again within ``max_live`` elements, which of a layer are twice what stands after it
    (partitioned_param_coordinator.py, ``__params_to_release``); the head's ``head`` elements always.
    """
    return min(1.0, max(head, max_live / 2.0) / parameters)


def hiding_tokens(
    node_gbit_per_s: float, mfu: float = ASSUMED_MFU, efficiency: float = ASSUMED_LINK_EFFICIENCY
) -> float:
    """Tokens per GPU and micro-batch above which ZeRO-3's traffic hides under compute, whatever the model's size.

    Compute takes 6 N T / (MFU * peak); two gathers and one scatter move 6 N bytes, which enter a node once, over all
    its network cards together: T* = MFU * peak / (efficiency * bytes per second of the node).
    """
    return mfu * PEAK_FLOPS / (efficiency * node_gbit_per_s * 1e9 / 8)
