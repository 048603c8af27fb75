"""(IA)^3 (Liu et al. 2022, section 3.3) by PEFT: keys, values and the MLP's inner activations times learnt vectors.

All factors start at 1, so the first step starts from the base. Where a family computes queries, keys and values in
one layer, its whole output is scaled, as in PEFT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from conf.errors import InternalError
from conf.schema import Ia3Tuning
from train.families import Family
from train.loading.adapters import CONFIG
from train.tuning._folder import Folder
from train.tuning._peft import adapted, load, whole_modules, write_folder

__all__ = ["FOLDER", "apply", "load", "merge", "save"]

FOLDER = Folder(CONFIG, "IA3")


def apply(model: nn.Module, tuning: Ia3Tuning, family: Family, *, seed: int) -> nn.Module:
    """Wrap ``model``; only the factors are trainable. They start at 1, whatever ``seed``."""
    from peft import IA3Config

    scaled = family.of_role("key", "value") or family.of_role("qkv")
    # By their paths: the last part of GPT-2's is the name of the attention's output too.
    inputs = [layer.path for layer in family.of_role("mlp_out")]
    if not scaled or not inputs:
        raise InternalError(
            f"(IA)^3 needs the roles key and value (or qkv) and mlp_out; the layers of train/families/"
            f"{family.model_type}.py lack one of them"
        )
    config = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=[*(layer.name for layer in scaled), *inputs],
        feedforward_modules=inputs,
        fan_in_fan_out=family.fan_in_fan_out,
    )
    dtype = next(parameter.dtype for parameter in model.parameters())
    wrapped = adapted(model, config)
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_("ia3_l" in name)
        if "ia3_l" in name:
            parameter.data = parameter.data.to(dtype)
    return wrapped


def merge(model: nn.Module) -> nn.Module:
    """The base model with the factors multiplied into its weights and biases in fp32, rounded once."""
    from peft import PeftModel
    from peft.tuners.ia3 import IA3Layer

    if not isinstance(model, PeftModel):
        return model
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, IA3Layer):
                _fold(module)
    plain: nn.Module = model.unload()
    return plain


def _fold(layer: Any) -> None:
    """Multiply rows (outputs) or columns (inputs) of the base weight, then set the factors to 1."""
    base = layer.get_base_layer()
    for factors in layer.ia3_l.values():
        along_inputs = layer.is_feedforward != layer.fan_in_fan_out
        scale = factors.float().flatten()
        base.weight.copy_(base.weight.float() * (scale[None, :] if along_inputs else scale[:, None]))
        if base.bias is not None and not layer.is_feedforward:
            base.bias.copy_(base.bias.float() * scale)
        factors.fill_(1.0)


def save(model: nn.Module, tuning: Ia3Tuning, folder: Path, *, base: str) -> None:
    """The factors as an adapter folder that PEFT loads."""
    from peft import get_peft_model_state_dict

    peft: Any = model
    config, weights = peft.peft_config["default"], get_peft_model_state_dict(peft, save_embedding_layers=False)
    write_folder(config, {**weights, **whole_modules(model, config, "ia3_l")}, folder, base=base)
