"""The frozen base in 4 bits (QLoRA, Dettmers et al. 2023, section 3): NF4 with quantized constants."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from conf.errors import ConfigError, Unavailable
from conf.schema.methods import LoraTuning, Tuning


def quantized(tuning: Tuning, *, dtype: torch.dtype, device: torch.device) -> Any | None:
    """The quantization config with which transformers loads the base; None: no quantization.

    Products are computed in ``dtype``. Raises ConfigError without an NVIDIA GPU, Unavailable without bitsandbytes.
    """
    if not isinstance(tuning, LoraTuning) or tuning.quantize == "none":
        return None
    if device.type != "cuda" or torch.version.hip:
        actual = "an AMD GPU" if torch.version.hip else device.type
        raise ConfigError(
            f"tuning.quantize: {tuning.quantize} needs an NVIDIA GPU, but this run's device is {actual}; "
            "use tuning.quantize=none"
        )
    if find_spec("bitsandbytes") is None:
        raise Unavailable(
            f"tuning.quantize: {tuning.quantize} needs the package bitsandbytes, which is not installed; "
            "pip install bitsandbytes, or use tuning.quantize=none"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=tuning.quantize,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
