"""FlashAttention 2 (Dao 2023), the flash-attn package, through transformers."""

from __future__ import annotations

import torch

from train.attention.flash import Package, require_package
from train.attention.types import Attention
from train.families import Family

RANK = 40
ATTENTION = Attention(name="flash2", implementation="flash_attention_2", layout="flat")
PACKAGE = Package(
    module="flash_attn",
    distribution="flash_attn",
    versions="2.",
    install="pip install -e '.[flash]'",
    majors=(8, 9, 10, 12),
)


def require(family: Family, *, pack: str, dtype: torch.dtype, device: torch.device) -> Attention:
    """The backend, or ConfigError: it needs a CUDA device, bf16 or fp16 and an installed flash-attn 2."""
    return require_package(ATTENTION, PACKAGE, family, dtype=dtype, device=device)
