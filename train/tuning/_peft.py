"""What the methods that PEFT computes have in common: putting them on, and the folder that PEFT loads."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from train.loading.adapters import with_adapters

WEIGHTS = "adapter_model.safetensors"


def adapted(model: nn.Module, config: Any) -> nn.Module:
    """``model`` inside a PeftModel, its base frozen, the new weights in the base's dtype."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a property that transformers renamed
        wrapped: nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
    return wrapped


PREFIX = "base_model.model."
"""What PEFT puts before the names of the base's parameters."""


def whole_modules(model: nn.Module, config: Any, marks: str) -> dict[str, nn.Parameter]:
    """Parameters of the base that were trained in place, under each of their names, which ``config`` then lists.

    ``marks``: what the names of the method's own weights contain.
    """
    named = model.named_parameters(remove_duplicate=False)
    whole = {name: parameter for name, parameter in named if parameter.requires_grad and marks not in name}
    config.modules_to_save = sorted({name.removeprefix(PREFIX).rsplit(".", 1)[0] for name in whole}) or None
    return whole


def write_folder(config: Any, weights: dict[str, torch.Tensor], folder: Path, *, base: str) -> None:
    """adapter_config.json and adapter_model.safetensors, for ``PeftModel.from_pretrained`` on the model at ``base``."""
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(folder)
    # Copies: safetensors refuses tensors that share storage, as tied weights do.
    plain = {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in weights.items()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})


def load(model: Any, folder: Path) -> nn.Module:
    """``model``, the base, with the adapters of ``folder``, as PEFT computes them."""
    loaded: nn.Module = with_adapters(model, folder)
    return loaded
