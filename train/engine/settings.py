"""Translate our schema to the dictionary that DeepSpeed receives; a golden file in the tests holds every value.

DeepSpeed's defaults change between releases (``gradient_clipping`` became 1.0), so this dictionary relies on none.
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
    """The DeepSpeed configuration of a run on ``world`` ranks; ``slices`` consecutive ranks share the same rows.

    Stage 0 is clipped by ``Engine`` itself, because DeepSpeed reports no gradient norm there. On CPU and on one rank,
    communication never overlaps computation: gloo has no streams, and one rank sends nothing. Raises ConfigError for
    options of DeepSpeed that do not work with these ranks.
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
        "communication_data_type": _reduced_in(zero),
        # A mean would divide by the ranks in the compute dtype at stage 2; stage 3 knows no sum.
        "gradient_allreduce_op": "mean" if stage == 3 else "sum",
        "zero_allow_untested_optimizer": False,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero_section(zero, world, on_cpu),
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it would make the host wait for the GPU twice a micro-batch
    }


def _reduced_in(zero: ZeroConfig) -> str:
    """The dtype in which gradients meet over the ranks; left to DeepSpeed it is the compute dtype.

    At stage 1 in bf16 DeepSpeed would round the gradient that it has accumulated in fp32, on one rank too. Gradients
    that travel in 4 bits come from the compute dtype: their kernels take 16 bits.
    """
    return "bf16" if zero.deepspeed.get("zero_quantized_gradients") else zero.reduce_dtype


def _zero_section(zero: ZeroConfig, world: int, on_cpu: bool) -> dict[str, Any]:
    section: dict[str, Any] = {
        "stage": zero.stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": zero.bucket_elements,
        "allgather_partitions": True,
        "allgather_bucket_size": zero.bucket_elements,
        # On one rank nothing travels, and stage 2 would wait for the device after every micro-batch.
        "overlap_comm": zero.overlap_comm and world > 1 and not on_cpu,
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
            f"zero.deepspeed: zero_hpz_partition_size={group} was asked for on {world} ranks, which do not "
            f"form whole groups of {group}; set a divisor of {world}, usually the number of GPUs per node"
        )
    quantized = [key for key, value in zero.deepspeed.items() if value is True]
    if on_cpu and quantized:
        raise ConfigError(
            f"zero.deepspeed: {quantized[0]} needs a GPU, because only its kernels quantize traffic; remove this key"
        )


def fitted(settings: Mapping[str, Any], *, trained: int, block: int) -> dict[str, Any]:
    """``settings`` with buckets that are no larger than their content, but even.

    DeepSpeed allocates buckets at full size, and refuses odd ones (stage_1_and_2.py, nccl_start_alignment_factor).
    ``trained``: number of elements that get a gradient. ``block``: number of elements of one block of the model, so
    that stage 3 gathers at most the next block while the current one computes.
    """
    zero = dict(settings["zero_optimization"])
    bucket = max(2, min(zero["reduce_bucket_size"], trained))
    bucket += bucket % 2
    zero |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if "stage3_prefetch_bucket_size" in zero:
        zero["stage3_prefetch_bucket_size"] = min(zero["stage3_prefetch_bucket_size"], block)
    return {**settings, "zero_optimization": zero}
