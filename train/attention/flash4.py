"""FlashAttention 4, flash_attn.cute (the flash-attn-4 package), through transformers."""

from __future__ import annotations

import torch

from train.attention.flash import Package, require_package
from train.attention.types import Attention
from train.families import Family

RANK = 10
ATTENTION = Attention(name="flash4", implementation="flash_attention_4", layout="flat")
PACKAGE = Package(
    module="flash_attn.cute",
    distribution="flash_attn_4",
    versions="",
    install="pip install flash-attn-4",
    majors=(9, 10),
)


def require(family: Family, *, pack: str, dtype: torch.dtype, device: torch.device) -> Attention:
    """The backend, or ConfigError: it needs a Hopper or Blackwell GPU, bf16 or fp16 and an installed flash-attn-4."""
    return require_package(ATTENTION, PACKAGE, family, dtype=dtype, device=device)
