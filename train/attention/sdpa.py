"""PyTorch's scaled_dot_product_attention through transformers: works everywhere, builds a mask.

With data.pack=none rows are padded to the longest of a micro-batch. With packed rows transformers derives a
block-diagonal mask from position ids that restart (attention_mask=None and use_cache=False, both of which batch.py
gives): exact, but quadratic in the tokens of a micro-batch.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from conf.errors import ConfigError
from train.attention.types import Attention
from train.families import Family

RANK = 50
ATTENTION = Attention(name="sdpa", implementation="sdpa", layout="padded")


def require(family: Family, *, pack: str, dtype: torch.dtype, device: torch.device) -> Attention:
    """The backend for this run. Raises ConfigError where packed rows could not be isolated.

    A family that SDPA cannot compute, because its scores are capped or it has no attention interface, computes its own
    attention (eager) over the same mask.
    """
    if pack == "exact" and not family.packing:
        raise ConfigError(
            f"attention: sdpa was asked to isolate packed samples of a model of type {family.model_type}, "
            f"{family.reason}; data.pack=none works"
        )
    name = "sdpa" if family.interface and not family.soft_cap else "eager"
    return replace(ATTENTION, name=name, implementation=name, layout="flat" if pack == "exact" else "padded")
