"""FLOPs that an optimizer step computes, and peak FLOP/s of the device: MFU is their quotient per second.

Per token, a matrix of P elements costs 2P forward; backward, 2P for the gradient of its input and 2P for its own
gradient (Kaplan et al. 2020, section 2.1: 6P in all). Attention costs 4 * width per layer and visible pair of positions
forward, and twice that backward. By the definition of MFU (Chowdhery et al. 2022, PaLM, appendix B), padding, norms,
embeddings and recomputation do not count; logits count only at positions where they are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from conf.schema import RunConfig
from conf.whole_numbers import ceil_div
from data_prep.stream.stream import GlobalStep
from train.families import Shape, shape_of
from train.model.recompute import STRIDE
from train.plan.activations import Recompute

# Part of a device's name (the first that matches) -> its dense matrix FLOP/s, from the vendors' data sheets.
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
    """Peak dense FLOP/s of ``device`` for matrices in ``dtype`` (bf16); 0 if unknown (CPUs, fp32)."""
    if device.type != "cuda" or dtype != "bf16":
        return 0.0
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float:
    """Dense bf16 FLOP/s of the device named ``name``; 0 if unknown."""
    return next((peak for part, peak in PEAK_BF16 if part in name), 0.0)


def step_flops(model_config: Mapping[str, Any], plan: GlobalStep, cfg: RunConfig) -> float:
    """FLOPs of one optimizer step over all ranks, forward and backward; ``model_config``: its config.json."""
    head_positions = plan.targets if cfg.compute.targets_only_head and cfg.data.pack == "exact" else plan.positions
    shape = shape_of(model_config)
    trained = cfg.tuning.trained(shape)
    return training_flops(
        shape,
        positions=float(plan.positions),
        pairs=float(plan.pairs),
        head_positions=float(head_positions),
        adapter=trained.matrices,
        # Where some matrices are frozen, all earn as frozen ones do, so MFU is not flattered.
        full=trained.gradients == "every matrix",
    )


def training_flops(
    shape: Shape, *, positions: float, pairs: float, head_positions: float, adapter: float, full: bool
) -> float:
    """FLOPs of forward and backward. ``pairs``: (query, key) pairs that causal attention sees; ``adapter``: elements.

    A frozen matrix needs no weight gradient: 4P instead of 6P. A head with new rows is trained by every method.
    """
    per_element = 6.0 if full else 4.0
    per_score = 6.0 if shape.base_vocab is not None else per_element
    head = shape.hidden * shape.vocab
    attention = 3.0 * 4.0 * shape.query * shape.layers * pairs
    matrices = per_element * shape.matrices * positions + per_score * head * head_positions
    return matrices + 6.0 * adapter * positions + attention


def recomputed_flops(model_config: Mapping[str, Any], plan: GlobalStep, cfg: RunConfig) -> float:
    """FLOPs that activation checkpointing adds to a step: the second forward pass of the recomputed blocks."""
    shape, stride = shape_of(model_config), STRIDE[cast(Recompute, cfg.model.recompute)]
    if not stride:
        return 0.0
    blocks = ceil_div(shape.layers, stride) / shape.layers
    matrices = shape.matrices + cfg.tuning.trained(shape).matrices
    attention = 4.0 * shape.query * shape.layers * plan.pairs
    return blocks * (2.0 * matrices * plan.positions + attention)
