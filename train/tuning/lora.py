"""LoRA (Hu et al. 2021) by PEFT: y = W x + s B A dropout(x), with W frozen; s = alpha / rank or alpha / sqrt(rank).

A starts uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5, PEFT's default) from a generator seeded by the run's seed
and the parameter's name, B at zero: the same on every rank, world size and ZeRO stage, and independent of the order
in which modules are visited. Adapters live in the model's dtype; their fp32 master copy is the optimizer's.

With ``variant: dora`` the weight is m (W + s B A) / |W + s B A|, rows by their lengths, and m starts at |W|
(Liu et al. 2024, equation 5). Modules of ``modules_to_save`` are trained in place, so tied weights stay tied.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conf.errors import ConfigError
from conf.schema import LoraTuning
from train.families import Family
from train.loading.adapters import CONFIG
from train.tuning._folder import Folder
from train.tuning._names import fits, refuse_unknown
from train.tuning._peft import adapted, load, whole_modules, write_folder
from train.tuning._start import uniform

__all__ = ["FOLDER", "apply", "load", "merge", "save"]

FOLDER = Folder(CONFIG, "LORA")


def apply(model: nn.Module, tuning: LoraTuning, family: Family, *, seed: int) -> nn.Module:
    """Wrap ``model`` in PEFT adapters; they and ``modules_to_save`` alone are trainable.

    Raises ConfigError for targets or modules that the model does not have.
    """
    from peft import LoraConfig

    targets = family.lora_targets if tuning.targets == "family" else tuning.targets
    chosen = _targets(model, list(targets))
    whole = _whole(model, tuning.modules_to_save, chosen)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.rank,
        # PEFT stores what it is given; whole numbers stay integers in adapter_config.json, as other tools expect.
        lora_alpha=int(tuning.alpha) if tuning.alpha.is_integer() else tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=chosen,
        fan_in_fan_out=family.fan_in_fan_out,
        use_rslora=tuning.scaling == "sqrt_rank",
        use_dora=tuning.variant == "dora",
        bias="none",
    )
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    wrapped = adapted(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
            parameter.data = _initial(name, parameter, seed).to(dtype)
    for module in whole:
        model.get_submodule(module).requires_grad_(True)
    return wrapped


def _initial(name: str, parameter: nn.Parameter, seed: int) -> torch.Tensor:
    """First value of a new weight: A is [rank, in], B is [out, rank]; DoRA's lengths are those PEFT has measured."""
    if "lora_magnitude_vector" in name:
        return parameter.data
    if "lora_A" not in name:
        return torch.zeros(parameter.shape, device=parameter.device)
    return uniform(name, parameter.shape, 1.0 / math.sqrt(parameter.shape[1]), seed).to(parameter.device)


def _targets(model: nn.Module, patterns: list[str]) -> list[str]:
    """What PEFT is told to adapt: plain names as they are, patterns as the names of all linear layers they fit.

    Raises ConfigError naming every pattern that no linear layer of ``model`` answers to.
    """
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    answers = {pattern: [name for name in linear if fits(name, pattern)] for pattern in patterns}
    missing = [pattern for pattern, names in answers.items() if not names]
    if missing or not patterns:
        available = sorted({name.rsplit(".", 1)[-1] for name in linear})
        asked = f"no linear layer is called {', '.join(missing)}" if missing else "the list is empty"
        raise ConfigError(f"tuning.targets: {asked} in this model; it has {', '.join(available)}")
    plain = [pattern for pattern in patterns if not set(pattern) & set("*?[")]
    return list(dict.fromkeys([*plain, *(name for each in patterns if each not in plain for name in answers[each])]))


def _whole(model: nn.Module, patterns: list[str], targets: list[str]) -> list[str]:
    """Names of the modules that ``patterns`` fit, with all they hold. ConfigError for unknown ones and for targets."""
    modules = dict(model.named_modules())
    refuse_unknown(
        "tuning.modules_to_save", [each for each in patterns if not any(fits(name, each) for name in modules)], modules
    )
    found = [name for name in modules if any(fits(name, pattern) for pattern in patterns)]
    for name in found:
        inside = [f"{name}.{below}" if below else name for below, _ in modules[name].named_modules()]
        both = [each for each in inside if any(fits(each, target) for target in targets)]
        if both:
            raise ConfigError(
                f"tuning.modules_to_save: {name} is trained whole there, and tuning.targets gives {both[0]} an "
                "adapter; name it in one of them"
            )
    return found


def merge(model: nn.Module) -> nn.Module:
    """The base model with the adapted weight in place of W, computed in fp32 and rounded once to W's dtype.

    Changes ``model``; one that was merged before is returned as it is. Raises ConfigError for a base in 4 bits.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    if not isinstance(model, PeftModel):
        return model
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if not all(layer.get_base_layer().weight.is_floating_point() for layer in layers):
        raise ConfigError(
            "merge=true would round the adapted weights to 4 bits again; use merge=false: the adapters load onto the "
            "base in 4 or 16 bits"
        )
    with torch.no_grad():
        for layer in layers:
            _fold(layer)
    plain: nn.Module = model.unload()
    return plain


def _fold(layer: Any) -> None:
    """Put the adapted weight into the base layer, then zero B, so that nothing is counted twice."""
    for adapter in layer.lora_A:
        a, b = layer.lora_A[adapter].weight.float(), layer.lora_B[adapter].weight.float()
        weight = layer.get_base_layer().weight
        whole = (weight.T if layer.fan_in_fan_out else weight).float() + (b @ a) * float(layer.scaling[adapter])
        if adapter in layer.lora_magnitude_vector:
            lengths = torch.linalg.norm(whole, dim=1, keepdim=True)
            whole = whole * (layer.lora_magnitude_vector[adapter].weight.float()[:, None] / lengths)
        weight.copy_(whole.T if layer.fan_in_fan_out else whole)
        layer.lora_B[adapter].weight.zero_()


def save(model: nn.Module, tuning: LoraTuning, folder: Path, *, base: str) -> None:
    """An adapter folder that PEFT loads. Tied weights trained whole are listed and stored under each of their names."""
    from peft import get_peft_model_state_dict

    peft: Any = model
    config, weights = peft.peft_config["default"], get_peft_model_state_dict(peft, save_embedding_layers=False)
    write_folder(config, {**weights, **whole_modules(model, config, "lora_")}, folder, base=base)
