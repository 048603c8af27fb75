"""Our schema to the dictionary DeepSpeed receives: one function, every value explicit, held by a golden file in tests.

DeepSpeed's defaults change between releases (``gradient_clipping`` became 1.0), so nothing is left to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conf.errors import ConfigError
from conf.schema import BatchConfig, ModelConfig, OptimConfig, ZeroConfig
from train.plan import accumulation_steps, number


def deepspeed_settings(
    *,
    model: ModelConfig,
    zero: ZeroConfig,
    optim: OptimConfig,
    batch: BatchConfig,
    world: int,
    on_cpu: bool,
    slices: int = 1,
) -> dict[str, Any]:
    """The DeepSpeed configuration of a run on ``world`` ranks, so many ``slices`` of which share their rows.

    Stage 0 is clipped by ``Engine`` itself, because DeepSpeed reports no gradient norm there. On CPU, communication
    is never overlapped: gloo has no streams to overlap with. Raises ConfigError for what DeepSpeed cannot do with
    these ranks.
    """
    _check_passed_on(zero, world, on_cpu)
    accumulation = accumulation_steps(batch, world // slices)
    micro, stage = number(batch.micro_size), number(zero.stage)
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro * accumulation * world,
        "gradient_clipping": optim.clip if stage else 0.0,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "bf16": {"enabled": model.dtype == "bf16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": False,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero_section(zero, on_cpu),
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would make the host wait for the GPU twice a micro-batch
    }


def _zero_section(zero: ZeroConfig, on_cpu: bool) -> dict[str, Any]:
    section: dict[str, Any] = {
        "stage": zero.stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": zero.bucket_elements,
        "allgather_partitions": True,
        "allgather_bucket_size": zero.bucket_elements,
        "overlap_comm": zero.overlap_comm and not on_cpu,
        "round_robin_gradients": False,
    }
    if zero.stage == 3:
        section |= {
            "stage3_param_persistence_threshold": zero.persistence_threshold,
            "stage3_prefetch_bucket_size": zero.prefetch_elements,
            "stage3_max_live_parameters": zero.max_live_parameters,
            "stage3_max_reuse_distance": zero.max_live_parameters,
            "stage3_gather_16bit_weights_on_model_save": False,
            "sub_group_size": 1_000_000_000,
            **zero.deepspeed,
        }
    if zero.offload != "none":
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": not on_cpu}
    if zero.offload == "all":
        section["offload_param"] = {"device": "cpu", "pin_memory": not on_cpu}
    return section


def _check_passed_on(zero: ZeroConfig, world: int, on_cpu: bool) -> None:
    group = zero.deepspeed.get("zero_hpz_partition_size", 1)
    if world % group:
        raise ConfigError(
            f"zero.deepspeed: zero_hpz_partition_size={group} was asked for on {world} ranks, which are not whole "
            "groups of it; give a divisor, usually the GPUs of a node"
        )
    quantized = [key for key, value in zero.deepspeed.items() if value is True]
    if on_cpu and quantized:
        raise ConfigError(f"zero.deepspeed: {quantized[0]} needs a GPU, whose kernels round what travels; take it away")


def fitted(settings: Mapping[str, Any], *, trained: int, block: int) -> dict[str, Any]:
    """``settings`` with buckets that are no larger than what fills them.

    DeepSpeed allocates them at full size. ``trained``: elements that get a gradient; ``block``: elements of one block
    of the model, so that at most the next one is gathered while this one computes.
    """
    zero = dict(settings["zero_optimization"])
    bucket = max(1, min(zero["reduce_bucket_size"], trained))
    zero |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if "stage3_prefetch_bucket_size" in zero:
        zero["stage3_prefetch_bucket_size"] = min(zero["stage3_prefetch_bucket_size"], block)
    return {**settings, "zero_optimization": zero}
