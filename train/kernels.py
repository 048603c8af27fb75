"""Fused kernels for what a block computes besides matrix products and attention (``compute.kernels``).

On a GPU, norms, rotary positions and activation functions move more bytes than their arithmetic is worth; one kernel in
place of several moves each tensor once. ``liger`` takes those of the Liger Kernel package (Hsu et al. 2024),
``compile`` lets torch.compile write them, one block at a time: all blocks share one compiled function, whatever the
lengths of the rows, so a run compiles once and not once per step.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from conf.errors import ConfigError
from train.models import Family


def use_kernels(model: nn.Module, kernels: str, family: Family, device: torch.device) -> str | None:
    """Make ``model``, before any tuning method adds to it, use ``kernels``; what was done, for the log.

    Raises ConfigError where they do not exist: what was asked, what was found, which rule failed, what works.
    """
    if kernels == "none":
        return None
    if kernels == "liger":
        return _liger(model, family, device)
    blocks = [module for module in model.modules() if type(module).__name__ == family.block_class]
    for block in blocks:
        block.compile(dynamic=True)
    return f"{len(blocks)} blocks run what torch.compile makes of them; the first step waits for it"


def _liger(model: nn.Module, family: Family, device: torch.device) -> str:
    asked = "compute.kernels: liger was asked for"
    if device.type != "cuda":
        raise ConfigError(
            f"{asked} and a {device.type} device was found, but its kernels are for GPUs; compute.kernels=none works"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise ConfigError(
            f"{asked} and no liger_kernel package was found (pip install -e '.[gpu]'); compute.kernels=compile works "
            "without it"
        )
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    patch = MODEL_TYPE_TO_APPLY_LIGER_FN.get(family.model_type)
    if patch is None:
        raise ConfigError(
            f"{asked} a model of type {family.model_type}, and Liger has kernels for "
            f"{', '.join(sorted(set(MODEL_TYPE_TO_APPLY_LIGER_FN)))}; compute.kernels=compile works"
        )
    # The loss stays ours: it knows the targets of the global batch.
    patch(cross_entropy=False, fused_linear_cross_entropy=False, model=model)
    return "norms, rotary positions and activations are Liger's kernels (compute.kernels)"
