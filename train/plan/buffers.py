"""What reducing gradients takes on one rank beside them: buckets, and copies of what is on its way and of its norm.

As DeepSpeed 0.19.8 does it. Stage 0 joins the gradients after the last backward pass, FLATTENED elements at a time.
Stage 1 in bf16 (bf16_optimizer.py) has no buckets: it then reduces its flat fp32 gradients. Stages 1 in fp32 or with
offload and 2 (stage_1_and_2.py, setup_buckets, allreduce_bucket): one bucket, two with overlap, of the dtype of the
gradients handed over; one flattened to be reduced, and its copy in fp32. Stage 3 (stage3.py, __avg_scatter_grads): one
bucket of the dtype that travels, for ever, and one flattened. A gradient larger than a bucket goes by itself: at stage
3 whole, before it in pieces, one per rank that owns some. ``compute.reproducible`` has an exchange of its own
(train/engine/in_order.py). tests/train/plan/test_states.py compares the plan with what two ranks really allocate and
send.
"""

from __future__ import annotations

from dataclasses import dataclass

from conf.schema import RunConfig
from conf.schema.facts import Trained
from train.families import Shape
from train.plan.activations import ELEMENT

FLATTENED = 500_000_000
"""Elements up to which stages 0 and, in bf16, 1 join their gradients (engine.py, allreduce_no_retain): into a copy."""

SQUARED, SQUARE_BYTES = 1 << 22, 24
"""Elements whose squares ``compute.reproducible`` adds up at once; bytes of each: a float64, its floor, an int64."""


@dataclass(frozen=True)
class Buffers:
    """Bytes of one rank."""

    held: float = 0.0
    """Buckets, from the first gradient of a backward pass to its end; at stage 3 for ever."""
    passing: float = 0.0
    """Copies during a reduction, at most."""
    after: float = 0.0
    """Copies when the backward passes of a step are over: of the reduction (stages 0 and 1), else of the norm."""


def largest_gradient(trained: Trained, shape: Shape, phase: str) -> int:
    """Elements of the largest gradient that may be on its way in ``phase``; 0 for adapters, which fit into a bucket.

    A head's is there first and may still be on its way later; that of a table which is also the head comes last.
    """
    if not trained.whole:
        return 0
    table = 0 if shape.tied and phase in ("norm", "deepest") else shape.vocab * shape.hidden
    return max(table, *(each.size for each in shape.linears)) if trained.adapted is None else table


def overlaps(cfg: RunConfig) -> bool:
    """Whether reductions run beside the backward pass: not on one rank (train/engine/settings.py)."""
    return cfg.zero.overlap_comm and cfg.cluster.nodes * cfg.cluster.gpus_per_node > 1


def buffers(cfg: RunConfig, *, stage: int, trained: int, largest: int, micro_batches: int) -> Buffers:
    """``trained``: elements that get a gradient, ``largest`` of them in one tensor. ``micro_batches``: of a rank and
    step."""
    world, element = cfg.cluster.nodes * cfg.cluster.gpus_per_node, ELEMENT[cfg.model.dtype]
    bucket = min(cfg.zero.bucket_elements, trained)
    if stage == 0:  # of gradients in fp32; what makes them too many is still with them
        return Buffers(after=4.0 * min(trained, FLATTENED + largest))
    if cfg.compute.reproducible:
        return _in_order(stage, trained / world, element=element, bucket=bucket, largest=largest, world=world)
    norm = 8.0 * min(largest, trained // world)  # in fp64, tensor by tensor
    if stage == 3:
        sent = ELEMENT[cfg.zero.reduce_dtype]
        return Buffers(float(sent * bucket), float(sent * max(bucket, largest)), 8.0 * largest / world)
    # The gradient of this micro-batch, beside what is accumulated; in bf16 it is added at once.
    own = 4.0 * trained / world if stage == 2 and element == 4 and micro_batches > 1 else 0.0
    if stage == 1:
        if element == 2 and cfg.zero.offload == "none":
            joined = trained if trained <= FLATTENED else 0
            return Buffers(after=4.0 * max(largest, joined))  # a gradient's copy on its way into the sum, or all joined
        element = 4  # what has been accumulated
    # The sum over micro-batches is in fp32: what travels is a copy in fp32, or becomes one where it is added.
    copied = 0 if element == 4 else 4
    piece = min(largest, trained // world)
    passing = (element + copied) * bucket
    if largest > bucket:
        passing = max(passing, copied * piece if piece > bucket else (element + copied) * (bucket + piece))
    return Buffers(own + element * bucket * (2 if overlaps(cfg) else 1), float(passing), norm)


def _in_order(stage: int, part: float, *, element: int, bucket: int, largest: int, world: int) -> Buffers:
    """Of ``compute.reproducible``: gradients wait for a bucket; then what is sent, what comes, and what it is added to.

    ``part``: elements that a rank owns. At stage 2 it gets a bucket in rounds, and the later ones wait meanwhile.
    """
    waiting = element if stage == 2 and world > 1 else 0
    passing = max(bucket, largest) * (waiting + max(element, 4 / world))
    return Buffers(float(element * bucket), passing, SQUARE_BYTES * min(SQUARED, part))
