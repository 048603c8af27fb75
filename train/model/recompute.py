"""Activation checkpointing (Chen et al. 2016) by block: keep a block's input, compute its inside again in backward."""

from __future__ import annotations

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint

from conf.errors import InternalError

STRIDE = {"none": 0, "selective": 2, "full": 1}
"""``model.recompute`` -> n: one block of every n is recomputed; 0: none."""


def set_recompute(model: nn.Module, policy: str, *, block_class: str) -> int:
    """Set recomputation of ``block_class`` modules by ``policy``; return the number of recomputed blocks.

    Uses the switch of transformers' blocks, which acts in train mode and passes every keyword (also packed bounds) to
    the second forward pass. Raises InternalError if the model has no such block.
    """
    blocks = [module for module in model.modules() if type(module).__name__ == block_class]
    if not blocks:
        raise InternalError(f"the model has no {block_class}; correct block_class of its file in train/families/")
    stride = STRIDE[policy]
    again = functools.partial(checkpoint, use_reentrant=False)
    chosen = 0
    for index, block in enumerate(blocks):
        on = stride > 0 and index % stride == 0
        block.gradient_checkpointing = on  # type: ignore[assignment]
        block._gradient_checkpointing_func = again  # type: ignore[assignment]
        chosen += on
    return chosen
