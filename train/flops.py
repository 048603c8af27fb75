"""FLOPs of an optimizer step, counted on what it computes, and what the device could do: the two sides of MFU.

Per token a matrix of P elements costs 2P forward, and backward 2P for the gradient of its input and 2P for its own
(Kaplan et al. 2020, section 2.1: 6P in all). Attention costs 4 * width per layer and visible pair of positions
forward, twice that backward. Padding, norms, embeddings and recomputation earn nothing, as MFU is defined (Chowdhery
et al. 2022, PaLM, appendix B); logits count only where they are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from conf.schema import FullTuning, RunConfig
from data_prep.stream import GlobalStep
from train.adapters import matrix_elements
from train.parameters import Shape, shape_of
from train.plan.activations import Recompute
from train.recompute import STRIDE

# Dense matrix FLOP/s of one device by the first part of its name that fits, from the vendors' data sheets.
PEAK_BF16: tuple[tuple[str, float], ...] = (
    ("B200", 2250e12),
    ("GH200", 989.4e12),
    ("H200", 989.4e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989.4e12),
    ("H800", 989.4e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
)


def device_peak(device: torch.device, dtype: str) -> float:
    """Peak FLOP/s of ``device`` for matrices in ``dtype`` (bf16), dense; 0 where it is not known (CPUs, fp32)."""
    if device.type != "cuda" or dtype != "bf16":
        return 0.0
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float:
    """Dense bf16 FLOP/s of a device by its name; 0 where it is not known."""
    return next((peak for part, peak in PEAK_BF16 if part in name), 0.0)


def step_flops(model_config: Mapping[str, Any], plan: GlobalStep, cfg: RunConfig) -> float:
    """FLOPs of one optimizer step over all ranks, forward and backward; ``model_config``: its config.json."""
    head_positions = plan.targets if cfg.compute.targets_only_head and cfg.data.pack == "exact" else plan.positions
    shape = shape_of(model_config)
    return training_flops(
        shape,
        positions=float(plan.positions),
        pairs=float(plan.pairs),
        head_positions=float(head_positions),
        adapter=matrix_elements(cfg.tuning, shape),
        # Which matrices a pattern freezes is not looked up here: all earn as frozen ones do, so MFU is not flattered.
        full=isinstance(cfg.tuning, FullTuning) and not cfg.tuning.freeze,
    )


def training_flops(
    shape: Shape, *, positions: float, pairs: float, head_positions: float, adapter: float, full: bool
) -> float:
    """FLOPs of forward and backward. ``pairs``: (query, key) pairs that causal attention sees; ``adapter``: elements.

    A frozen matrix needs no gradient of its own: 4P instead of 6P.
    """
    per_element = 6.0 if full else 4.0
    matrices = shape.layers * sum(linear.inputs * linear.outputs for linear in shape.linears)
    head = shape.hidden * shape.vocab
    attention = 3.0 * 4.0 * attention_width(shape) * shape.layers * pairs
    return per_element * (matrices * positions + head * head_positions) + 6.0 * adapter * positions + attention


def recomputed_flops(model_config: Mapping[str, Any], plan: GlobalStep, cfg: RunConfig) -> float:
    """FLOPs that activation checkpointing adds to a step: the forward pass of the blocks that it computes again."""
    shape, stride = shape_of(model_config), STRIDE[cast(Recompute, cfg.model.recompute)]
    if not stride:
        return 0.0
    blocks = -(-shape.layers // stride) / shape.layers
    matrices = shape.layers * sum(linear.inputs * linear.outputs for linear in shape.linears)
    matrices += matrix_elements(cfg.tuning, shape)
    attention = 4.0 * attention_width(shape) * shape.layers * plan.pairs
    return blocks * (2.0 * matrices * plan.positions + attention)


def attention_width(shape: Shape) -> int:
    """Heads times head size: the outputs of the query projection, or the width of the model where it is fused."""
    return next((linear.outputs for linear in shape.linears if linear.name == "q_proj"), shape.hidden)
