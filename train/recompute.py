"""Activation checkpointing (Chen et al. 2016) by block: keep a block's input, compute its inside again in backward."""

from __future__ import annotations

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint

from conf.errors import InternalError

STRIDE = {"none": 0, "selective": 2, "full": 1}
"""Every how many blocks are recomputed, by ``model.recompute``."""


def set_recompute(model: nn.Module, policy: str, *, block_class: str) -> int:
    """Switch recomputation of ``block_class`` modules by ``policy`` and return how many are recomputed.

    Uses transformers' own switch on its blocks, which takes effect in train mode and passes every keyword (packed
    bounds included) to the second forward pass. Raises InternalError if the model has no such block.
    """
    blocks = [module for module in model.modules() if type(module).__name__ == block_class]
    if not blocks:
        raise InternalError(f"the model has no {block_class}: its family file in train/models/ is wrong")
    stride = STRIDE[policy]
    again = functools.partial(checkpoint, use_reentrant=False)
    chosen = 0
    for index, block in enumerate(blocks):
        on = stride > 0 and index % stride == 0
        block.gradient_checkpointing = on  # type: ignore[assignment]
        block._gradient_checkpointing_func = again  # type: ignore[assignment]
        chosen += on
    return chosen
