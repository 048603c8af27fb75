"""What ``compute.reproducible`` cannot hold with: settings under which a step depends on the number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from conf.checks.finding import Finding

if TYPE_CHECKING:
    from conf.schema import RunConfig


def reproducible(cfg: RunConfig) -> Iterator[Finding]:
    """A finding per setting that ``compute.reproducible`` cannot hold with, and why."""
    if cfg.compute.reproducible:
        yield from _sums(cfg)
        yield from _micro_batches(cfg)


def _no(other: str, why: str) -> Finding:
    return Finding(("compute.reproducible", other), f"compute.reproducible: true {why}")


def _sums(cfg: RunConfig) -> Iterator[Finding]:
    """What makes sums, or the update, depend on the ranks."""
    zero = cfg.zero
    if zero.stage not in (2, 3):
        yield _no(
            "zero.stage",
            f"needs zero=2 or zero=3 (got zero={zero.stage}): at stages 0 and 1 each rank first adds up its own "
            "micro-batches, and which they are depends on the number of ranks",
        )
    if zero.offload != "none":
        yield _no(
            "zero.offload",
            f"cannot hold with zero.offload={zero.offload}: DeepSpeed adds up on the way to the host, and the update "
            "there computes the last elements of a tensor by other instructions; use zero.offload=none",
        )
    if zero.deepspeed:
        yield _no(
            "zero.deepspeed",
            f"is not proven with zero.deepspeed ({', '.join(zero.deepspeed)}), which changes how weights or gradients "
            "travel; remove its keys",
        )
    if zero.reduce_dtype != "fp32":
        yield _no(
            "zero.reduce_dtype",
            "sends gradients as they were computed and adds them in fp32, so zero.reduce_dtype="
            f"{zero.reduce_dtype} would not be read; use zero.reduce_dtype=fp32",
        )


def _micro_batches(cfg: RunConfig) -> Iterator[Finding]:
    """What makes the gradient of a micro-batch depend on the ranks."""
    compute, dropout = cfg.compute, getattr(cfg.tuning, "dropout", 0.0)
    if not compute.deterministic:
        yield _no(
            "compute.deterministic", "needs kernels that repeat (compute.deterministic=true); add debug=deterministic"
        )
    if cfg.batch.micro_size == "auto":
        yield _no(
            "batch.micro_size",
            "needs the same micro-batches on any number of ranks, and batch.micro_size=auto follows the memory that "
            "they leave; set a number",
        )
    if dropout:
        yield _no(
            "tuning.dropout",
            f"cannot hold with tuning.dropout={dropout}: each rank draws masks of its own; use tuning.dropout=0",
        )
    if compute.kernels == "compile":
        yield _no(
            "compute.kernels",
            "cannot hold with compute.kernels=compile, whose kernels depend on the shapes that a rank has seen before; "
            "use compute.kernels=none or liger",
        )
    if compute.sequence_parallel > 1:
        yield _no(
            "compute.sequence_parallel",
            f"adds up whole rows, and compute.sequence_parallel={compute.sequence_parallel} cuts them; set it to 1",
        )
