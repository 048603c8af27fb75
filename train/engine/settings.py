"""Our schema to the dictionary DeepSpeed receives: one function, every value explicit, held by a golden file in tests.

DeepSpeed's defaults change between releases (``gradient_clipping`` became 1.0), so nothing is left to them.
"""

from __future__ import annotations

from typing import Any

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
    is never overlapped: gloo has no streams to overlap with.
    """
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
        }
    if zero.offload != "none":
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": not on_cpu}
    if zero.offload == "all":
        section["offload_param"] = {"device": "cpu", "pin_memory": not on_cpu}
    return section
