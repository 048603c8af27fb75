"""Trained parameters by kind and size, also where stage 3 has partitioned them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from conf.schema import OptimConfig


def parameter_groups(parameters: Mapping[str, torch.nn.Parameter], optim: OptimConfig) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors (norms, biases) without. ``ds_shape`` is the shape under ZeRO-3."""
    matrices: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for parameter in parameters.values():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (matrices if len(shape) >= 2 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def elements(parameters: Iterable[torch.nn.Parameter]) -> int:
    """Number of elements of the whole parameters, also where stage 3 has partitioned them."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)


def largest_block(model: torch.nn.Module) -> int:
    """Number of elements of the largest repeated block, or of the whole model if it has no repeated blocks."""
    lists = [each for each in model.modules() if isinstance(each, torch.nn.ModuleList) and len(each)]
    blocks = [elements(block.parameters()) for each in lists for block in each]
    return max(blocks, default=elements(model.parameters()))
