"""The frozen base in 4 bits (QLoRA, Dettmers et al. 2023, section 3): NF4, its constants quantized too."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from conf.errors import ConfigError, Unavailable
from conf.methods import LoraTuning, Tuning


def quantized(tuning: Tuning, *, dtype: torch.dtype, device: torch.device) -> Any | None:
    """What transformers is told to load the base with; None: as it is.

    Matrices are computed in ``dtype``. Raises ConfigError away from an NVIDIA GPU, Unavailable without bitsandbytes.
    """
    if not isinstance(tuning, LoraTuning) or tuning.quantize == "none":
        return None
    asked = f"tuning.quantize: {tuning.quantize} was asked for"
    if device.type != "cuda" or torch.version.hip:
        found = "an AMD GPU" if torch.version.hip else f"a {device.type} device"
        raise ConfigError(
            f"{asked}, {found} was found, and its 4-bit kernels are written for NVIDIA GPUs; tuning.quantize=none works"
        )
    if find_spec("bitsandbytes") is None:
        raise Unavailable(
            f"{asked}, the package bitsandbytes was not found, and it holds the 4-bit kernels; "
            "pip install bitsandbytes, or tuning.quantize=none works"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=tuning.quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
