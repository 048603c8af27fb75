"""Bytes that one rank hands to each collective per optimizer step, and what of that hides under compute.

Read in DeepSpeed 0.19.8 (runtime/zero/stage_1_and_2.py, stage3.py, bf16_optimizer.py) and counted at
torch.distributed over two ranks (tests/train/plan/test_states.py). A ring moves (n - 1) / n of an all-gather's or
reduce-scatter's bytes over each link, twice that for an all-reduce (Patarasuk and Yuan 2009).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from conf.schema import RunConfig
from train.families import Shape
from train.families.parts.kept import sent
from train.plan.activations import ELEMENT
from train.plan.memory import accumulation_steps, number, readers, slice_tokens

PEAK_FLOPS = 989e12
"""Dense bf16 FLOP/s of one H100 or H200 (NVIDIA's data sheet)."""
ASSUMED_MFU, ASSUMED_LINK_EFFICIENCY = 0.5, 0.8
"""What good kernels and NCCL over InfiniBand reach; assumptions, not measurements."""
FITTED_GBIT = 3200.0
"""Gbit/s of a node of the published H100 rows that the plan's speed is fitted to (train/plan/speed.json)."""
HIDDEN = 0.5
"""At most this share of the traffic between nodes hides. At stage 2 a bucket's reduction runs beside the next bucket's
gradients only (stage_1_and_2.py, average_tensor), buckets are uneven, and the last one and then the device are waited
for (independent_gradient_partition_epilogue). How much that leaves is an assumption."""


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
    *, trained: int, gathered: float, stage: int, dtype: str, reduce_dtype: str, micro_batches: int, world: int
) -> Traffic:
    """Gradients and parameters of one step. ``gathered``: bytes of weights that stage 3 gathers for a micro-batch.

    Stages 0 and 1 reduce once per step and in fp32, stages 2 and 3 every micro-batch in ``reduce_dtype``; stage 2 also
    by an all-reduce (stage_1_and_2.py, allreduce_and_scatter). Stages 1 and 2 gather the updated weights.
    """
    if world == 1:
        return Traffic()
    size, sent = ELEMENT[dtype], ELEMENT[reduce_dtype]
    match stage:
        case 0:
            return Traffic(all_reduce=float(4 * trained))
        case 1:
            return Traffic(all_reduce=float(4 * trained), all_gather=float(size * trained))
        case 2:
            return Traffic(all_reduce=float(sent * trained * micro_batches), all_gather=float(size * trained))
        case _:
            return Traffic(reduce_scatter=float(sent * trained * micro_batches), all_gather=gathered * micro_batches)


def traffic_in_order(
    *, trained: int, gathered: float, stage: int, dtype: str, micro_batches: int, world: int
) -> Traffic:
    """The same of ``compute.reproducible``, whose ranks send gradients to their owners as they were computed."""
    usual = traffic(
        trained=trained,
        gathered=gathered,
        stage=stage,
        dtype=dtype,
        reduce_dtype="fp32",
        micro_batches=micro_batches,
        world=world,
    )
    sent = ELEMENT[dtype] * trained * micro_batches if world > 1 else 0
    return Traffic(all_gather=usual.all_gather, all_to_all=float(sent))


def gathered_bytes(whole: float, stays: float) -> float:
    """Bytes that stage 3 gathers for one micro-batch of the ``whole`` weights, frozen ones included.

    All for the forward pass and again for the backward pass, but for the share ``stays`` that it keeps whole between;
    what is recomputed is whole while it is done again.
    """
    return (2.0 - stays) * whole


def exchanged(shape: Shape, *, tokens: int, slices: int, element: int, recomputed: float) -> float:
    """Bytes that one rank hands to the all-to-alls of a micro-batch whose row is sliced over ``slices`` ranks.

    In every layer the queries, keys and values of its ``tokens`` and the attention's output, forward and backward, and
    forward once more in the share ``recomputed`` of the blocks (Jacobs et al. 2023, section 3.2). ``element``: bytes of
    one number. A part of 1 / slices stays where it is.
    """
    if slices == 1:
        return 0.0
    width = 2 * shape.query + 2 * sent(shape, slices)
    return (2.0 + recomputed) * shape.layers * tokens * width * element


def kept_whole(parameters: int, head: int, max_live: int) -> float:
    """Share of the weights that stage 3 does not release after the forward pass.

    Those that are used again within ``max_live`` elements, which of a layer are twice what stands after it
    (partitioned_param_coordinator.py, ``__params_to_release``); the head's ``head`` elements always.
    """
    return min(1.0, max(head, max_live / 2.0) / parameters)


def tokens_per_byte(
    node_gbit_per_s: float, mfu: float = ASSUMED_MFU, efficiency: float = ASSUMED_LINK_EFFICIENCY
) -> float:
    """Tokens per GPU whose compute takes as long as one byte per weight takes to enter a node, by all its cards.

    Compute takes 6 N T / (MFU * peak), the bytes N / (efficiency * bytes per second of the node).
    """
    return mfu * PEAK_FLOPS / (6.0 * efficiency * node_gbit_per_s * 1e9 / 8)


def hiding_tokens(node_gbit_per_s: float, reduce_dtype: str = "fp32") -> float:
    """Tokens per GPU and micro-batch above which ZeRO-3's traffic hides under compute, whatever the model's size.

    Two gathers in bf16 and one scatter in ``reduce_dtype`` move 8 (fp32) or 6 bytes per weight into a node.
    """
    return (4 + ELEMENT[reduce_dtype]) * tokens_per_byte(node_gbit_per_s)


def compute_seconds(total: int, *, cut: bool) -> float:
    """Seconds of compute per token and GPU at the assumed MFU; ``cut``: frozen weights get no gradient of their own."""
    return (4.0 if cut else 6.0) * total / (ASSUMED_MFU * PEAK_FLOPS)


def exposed(cfg: RunConfig, *, trained: int, total: int) -> float:
    """Time between nodes that compute does not hide, as a share of the time of compute, beyond one reduction per step.

    That one all stages have. ``trained`` of ``total`` parameters get a gradient. Stage 2 all-reduces every micro-batch,
    beside the backward pass, two thirds of compute; a ring brings 2 (k - 1) / k times the bytes into each of k nodes.
    Stage 3 gathers twice (with zero_hpz_partition_size once between nodes) and scatters once, beside all compute.
    """
    nodes, zero = cfg.cluster.nodes, cfg.zero
    if nodes == 1 or zero.stage in (0, 1):
        return 0.0
    count, of_compute = _micro_batches(cfg), _of_compute(trained, total)
    if zero.stage == 2:
        moved, beside = 2.0 * ELEMENT[zero.reduce_dtype] * of_compute * (count - 1) / count, 2.0 / 3.0
    else:
        gathers = 1 if int(zero.deepspeed.get("zero_hpz_partition_size", 1)) > 1 else 2  # the second within the node
        moved, beside = 2.0 * gathers + ELEMENT[zero.reduce_dtype] * of_compute, 1.0
    tokens = slice_tokens(cfg, number(cfg.batch.micro_size) * cfg.data.seq_len)
    traffic = moved * (nodes - 1) / nodes * tokens_per_byte(cfg.cluster.node_gbit_per_s) / tokens
    return traffic - (min(HIDDEN * traffic, beside) if zero.overlap_comm else 0.0)


def slower_links(cfg: RunConfig, *, trained: int, total: int) -> float:
    """What links below FITTED_GBIT add to the time that the fitted rows contain, as a share of the time of compute.

    That is the traffic of stage 3, and of the others one reduction and one gather of the weights per step. Of those,
    stage 2 alone begins beside the backward pass.
    """
    nodes, zero = cfg.cluster.nodes, cfg.zero
    if nodes == 1 or cfg.cluster.node_gbit_per_s >= FITTED_GBIT:
        return 0.0
    if zero.stage == 3:
        fast = replace(cfg, cluster=replace(cfg.cluster, node_gbit_per_s=FITTED_GBIT))
        return exposed(cfg, trained=trained, total=total) - exposed(fast, trained=trained, total=total)
    sent = 2.0 * (ELEMENT[zero.reduce_dtype] if zero.stage == 2 else 4.0)
    gathered = 0.0 if zero.stage == 0 else ELEMENT[cfg.model.dtype]
    tokens = slice_tokens(cfg, number(cfg.batch.micro_size) * cfg.data.seq_len) * _micro_batches(cfg)
    per_byte = tokens_per_byte(cfg.cluster.node_gbit_per_s) - tokens_per_byte(FITTED_GBIT)
    seen = sent * (1.0 - HIDDEN * (zero.stage == 2 and zero.overlap_comm)) + gathered
    return seen * _of_compute(trained, total) * (nodes - 1) / nodes * per_byte / tokens


def _micro_batches(cfg: RunConfig) -> int:
    world = cfg.cluster.nodes * cfg.cluster.gpus_per_node
    return accumulation_steps(cfg.batch, readers(world, cfg.compute.sequence_parallel))


def _of_compute(trained: int, total: int) -> float:
    """Gradients per weight, against compute: a frozen weight costs no gradient of its own, 4 N T instead of 6 N T."""
    return trained / total * (1.0 if trained == total else 1.5)
