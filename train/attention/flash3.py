"""FlashAttention 3 (Shah et al. 2024), flash_attn_interface (the flash-attn-3 package), through transformers."""

from __future__ import annotations

import torch

from train.attention.flash import Package, require_package
from train.attention.types import Attention
from train.families import Family

RANK = 20
ATTENTION = Attention(name="flash3", implementation="flash_attention_3", layout="flat")
PACKAGE = Package(
    module="flash_attn_interface",
    distribution="flash_attn_3",
    versions="",
    install="build hopper/ of github.com/Dao-AILab/flash-attention",
    majors=(8, 9),
)


def require(family: Family, *, pack: str, dtype: torch.dtype, device: torch.device) -> Attention:
    """The backend, or ConfigError: it needs an Ampere or Hopper GPU, bf16 or fp16 and an installed flash-attn-3."""
    return require_package(ATTENTION, PACKAGE, family, dtype=dtype, device=device)
