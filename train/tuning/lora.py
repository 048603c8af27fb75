"""LoRA (Hu et al. 2021) by PEFT: y = W x + (alpha / rank) B A dropout(x), with W frozen.

A starts uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5, PEFT's default) from a generator seeded by the run's seed
and the parameter's name, B at zero: the same on every rank, world size and ZeRO stage, and independent of the order
in which modules are visited. Adapters live in the model's dtype; their fp32 master copy is the optimizer's.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from typing import Any

import torch
from torch import nn

from conf.errors import ConfigError
from conf.schema import LoraTuning
from train.models import Family


def apply(model: nn.Module, tuning: LoraTuning, family: Family, *, seed: int) -> nn.Module:
    """Wrap ``model`` in PEFT adapters; only they are trainable. Raises ConfigError for unknown targets."""
    from peft import LoraConfig, get_peft_model

    targets = list(family.lora_targets) if tuning.targets == "family" else list(tuning.targets)
    _check_targets(model, targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.rank,
        # PEFT stores what it is given; whole numbers stay integers in adapter_config.json, as other tools expect.
        lora_alpha=int(tuning.alpha) if tuning.alpha.is_integer() else tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=targets,
        fan_in_fan_out=family.fan_in_fan_out,
        bias="none",
    )
    dtype = next(parameter.dtype for parameter in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a property that transformers renamed
        adapted: nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
            parameter.data = _initial(name, parameter, seed).to(dtype)
    return adapted


def _initial(name: str, parameter: nn.Parameter, seed: int) -> torch.Tensor:
    """First value of an adapter matrix, fp32: A is [rank, in], B is [out, rank]."""
    if "lora_A" not in name:
        return torch.zeros(parameter.shape, device=parameter.device)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    bound = 1.0 / math.sqrt(parameter.shape[1])
    uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
    return ((2.0 * uniform - 1.0) * bound).to(parameter.device)


def _check_targets(model: nn.Module, targets: list[str]) -> None:
    """Raise ConfigError naming every target that no linear layer of ``model`` answers to."""
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    missing = [target for target in targets if not any(_answers(name, target) for name in linear)]
    if missing or not targets:
        available = sorted({name.rsplit(".", 1)[-1] for name in linear})
        asked = f"no linear layer is called {', '.join(missing)}" if missing else "the list is empty"
        raise ConfigError(f"tuning.targets: {asked} in this model; it has {', '.join(available)}")


def _answers(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def merge(model: nn.Module) -> nn.Module:
    """The base model with W + (alpha / rank) B A in place of W, computed in fp32 and rounded once to W's dtype.

    Changes ``model``; raises nothing for a model that was merged before (it is returned as it is).
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    if not isinstance(model, PeftModel):
        return model
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoraLayer):
                _fold(module)
    plain: nn.Module = model.unload()
    return plain


def _fold(layer: Any) -> None:
    """Add the adapter's product to the base weight, then zero B, so that nothing is counted twice."""
    for adapter in layer.lora_A:
        a, b = layer.lora_A[adapter].weight.float(), layer.lora_B[adapter].weight.float()
        delta = (b @ a) * float(layer.scaling[adapter])
        weight = layer.get_base_layer().weight
        weight.copy_(weight.float() + (delta.T if layer.fan_in_fan_out else delta))
        layer.lora_B[adapter].weight.zero_()
