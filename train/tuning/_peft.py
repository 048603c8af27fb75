"""What the methods that PEFT computes have in common: putting them on, and the folder that PEFT loads."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn


def adapted(model: nn.Module, config: Any) -> nn.Module:
    """``model`` inside a PeftModel, its base frozen, the new weights in the base's dtype."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a property that transformers renamed
        wrapped: nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
    return wrapped


def write_folder(config: Any, weights: dict[str, torch.Tensor], folder: Path, *, base: str) -> None:
    """adapter_config.json and adapter_model.safetensors, for ``PeftModel.from_pretrained`` on the model at ``base``."""
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(folder)
    # Copies: safetensors refuses tensors that share storage, as tied weights do.
    plain = {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in weights.items()}
    save_file(plain, folder / "adapter_model.safetensors", metadata={"format": "pt"})
