"""Fused kernels for the parts of a block that are not matrix products or attention (``compute.kernels``).

On a GPU, memory traffic limits norms, rotary positions and activation functions; one fused kernel reads and writes a
tensor only once. ``liger`` uses the kernels of the Liger Kernel package (Hsu et al. 2024). ``compile`` lets
torch.compile generate them block by block: all blocks and row lengths share one compiled function, so a run compiles
once and not once per step.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from conf.errors import ConfigError
from train.families import Family
from train.model.compiled import compile_blocks


def use_kernels(model: nn.Module, kernels: str, family: Family, device: torch.device) -> str | None:
    """Make ``model`` use ``kernels``, before a tuning method changes it; return a note for the log.

    Raises ConfigError if this machine or the model's family does not have the kernels.
    """
    if kernels == "none":
        return None
    if kernels == "liger":
        return _liger(model, family, device)
    blocks = [module for module in model.modules() if type(module).__name__ == family.block_class]
    compile_blocks(blocks)
    return f"compute.kernels: torch.compile compiles {len(blocks)} blocks in the first step, which takes longer"


def _liger(model: nn.Module, family: Family, device: torch.device) -> str:
    if device.type != "cuda":
        raise ConfigError(
            f"compute.kernels: liger needs a GPU, but this run's device is {device.type}; use compute.kernels=none"
        )
    if importlib.util.find_spec("liger_kernel") is None:
        raise ConfigError(
            "compute.kernels: liger needs the package liger_kernel, which is not installed; pip install -e '.[gpu]', "
            "or use compute.kernels=compile"
        )
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    patch = MODEL_TYPE_TO_APPLY_LIGER_FN.get(family.model_type)
    if patch is None:
        raise ConfigError(
            f"compute.kernels: liger has no kernels for a model of type {family.model_type}, only for "
            f"{', '.join(sorted(set(MODEL_TYPE_TO_APPLY_LIGER_FN)))}; use compute.kernels=compile"
        )
    # Liger does not replace Corral's loss, which knows the targets of the global batch.
    patch(cross_entropy=False, fused_linear_cross_entropy=False, model=model)
    return "compute.kernels: norms, rotary positions and activations use Liger's kernels"
