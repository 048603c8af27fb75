"""Bottleneck adapters (Houlsby et al. 2019): x + U gelu(D x) on what a sublayer adds to the residual stream.

``houlsby`` puts one after attention and one after the MLP, right after the projection back to the model's width and
before the skip connection (section 2.1); ``pfeiffer`` after the MLP alone (Pfeiffer et al. 2021). U and all biases
start at zero, so the first step starts from the base. Our own file: the library of this name needs an older
transformers. PEFT has no such method, so the folder of an export is one that ``train.chat`` loads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from conf.errors import InternalError, MissingInput
from conf.schema import BottleneckTuning
from train.models import Family, family
from train.tuning._names import fits
from train.tuning._start import uniform

CONFIG, WEIGHTS = "bottleneck_config.json", "bottleneck_model.safetensors"
LAST = {
    "pfeiffer": ("mlp.down_proj", "mlp.fc2", "mlp.c_proj", "mlp.dense_4h_to_h"),
    "houlsby": (
        "mlp.down_proj", "mlp.fc2", "mlp.c_proj", "mlp.dense_4h_to_h",
        "self_attn.o_proj", "self_attn.dense", "attn.c_proj", "attention.dense", "self_attention.dense",
    ),
}  # fmt: skip
"""The last layer of each sublayer that gets an adapter, of every family."""


class Bottleneck(nn.Module):
    """[..., width] to [..., width] through ``size``."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(nn.functional.gelu(self.down(x)))  # type: ignore[no-any-return]


def apply(model: nn.Module, tuning: BottleneckTuning, family: Family, *, seed: int) -> nn.Module:
    """Freeze ``model`` and put the adapters beside the layers they follow; they alone are trainable."""
    model.requires_grad_(False)
    first = next(model.parameters())
    width = model.get_input_embeddings().embedding_dim  # type: ignore[operator]
    chosen = [name for name, _ in model.named_modules() if any(fits(name, last) for last in LAST[tuning.placement])]
    if not chosen:
        raise InternalError(f"no sublayer of {family.model_type} is known: add its last layers to {__name__}")
    for name in chosen:
        adapter = Bottleneck(width, tuning.size)
        for own, parameter in adapter.named_parameters():
            bound = 1.0 / math.sqrt(width) if own == "down.weight" else 0.0
            parameter.data = uniform(f"{name}_adapter.{own}", parameter.shape, bound, seed)
        adapter.to(first.device, first.dtype)
        parent, last = name.rsplit(".", 1)
        model.get_submodule(parent).add_module(f"{last}_adapter", adapter)
        model.get_submodule(name).register_forward_hook(_after(adapter))
    return model


def _after(adapter: Bottleneck) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
    def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return adapter(output)  # type: ignore[no-any-return]

    return hook


def merge(model: nn.Module) -> nn.Module:
    """Raises ConfigError: a curve between two layers is no change of their weights."""
    from train.tuning._virtual import no_plain_model

    raise no_plain_model("bottleneck")


def save(model: nn.Module, tuning: BottleneckTuning, folder: Path, *, base: str) -> None:
    """The adapters and what they are, for ``load``."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {"base_model_name_or_path": base, "tuning": asdict(tuning)}
    (folder / CONFIG).write_text(json.dumps(made, indent=1) + "\n")
    weights = {name: value.detach().cpu() for name, value in model.named_parameters() if value.requires_grad}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def load(model: Any, folder: Path) -> nn.Module:
    """``model``, the base, with the adapters of ``folder``. Raises MissingInput if they are those of another model."""
    made = json.loads((folder / CONFIG).read_text())
    adapted = apply(model, BottleneckTuning(**made["tuning"]), family(model.config.model_type), seed=0)
    weights = load_file(folder / WEIGHTS)
    own = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in weights.items()}:
        raise MissingInput(f"{folder} holds adapters of another model than {made['base_model_name_or_path']}")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    return adapted
