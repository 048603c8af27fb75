"""FlashAttention 2 (Dao 2023), the flash-attn package, through transformers. CUDA, 16-bit numbers."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch

from conf.errors import ConfigError
from train.attention.types import Attention
from train.models import Family


def require(family: Family, *, pack: str, dtype: torch.dtype, device: torch.device) -> Attention:
    """The backend, or ConfigError: it needs a CUDA device, bf16 or fp16 and an installed flash-attn 2."""
    asked = "attention: flash2 was asked for"
    if not family.interface:
        raise ConfigError(f"{asked} a model of type {family.model_type}, {family.reason}; attention=auto works")
    if device.type != "cuda":
        raise ConfigError(
            f"{asked} and a {device.type} device was found, but flash-attn has kernels for CUDA only; "
            "attention=packed works"
        )
    if importlib.util.find_spec("flash_attn") is None:
        raise ConfigError(
            f"{asked} and no flash_attn package was found, which it needs (pip install -e '.[flash]'); "
            "attention=packed works without it"
        )
    version = importlib.metadata.version("flash_attn")
    if not version.startswith("2."):
        raise ConfigError(f"{asked} and flash_attn {version} was found, but it needs 2.x; attention=packed works")
    if dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(
            f"{asked} with {dtype}, but its kernels take 16-bit numbers only; model.dtype=bf16 or attention=sdpa works"
        )
    return Attention(name="flash2", implementation="flash_attention_2", layout="flat")
