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
from train.families import Family, Role, family
from train.tuning._folder import Folder
from train.tuning._names import fits
from train.tuning._start import uniform

FOLDER, WEIGHTS = Folder("bottleneck_config.json"), "bottleneck_model.safetensors"
AFTER: dict[str, tuple[Role, ...]] = {"pfeiffer": ("mlp_out",), "houlsby": ("attention_out", "mlp_out")}
"""Roles of the layers that an adapter follows, by placement."""


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
    paths = [layer.path for layer in family.of_role(*AFTER[tuning.placement])]
    chosen = [name for name, _ in model.named_modules() if any(fits(name, path) for path in paths)]
    if not chosen:
        raise InternalError(
            f"bottleneck adapters follow the layers of roles {' and '.join(AFTER[tuning.placement])}, and the model "
            f"has none of those that train/families/{family.model_type}.py names"
        )
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
    (folder / FOLDER.config).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    weights = {name: value.detach().cpu() for name, value in model.named_parameters() if "_adapter." in name}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def load(model: Any, folder: Path) -> nn.Module:
    """``model``, the base, with the adapters of ``folder``. Raises MissingInput if they are those of another model."""
    made = FOLDER.read(folder)
    adapted = apply(model, BottleneckTuning(**made["tuning"]), family(model.config.model_type), seed=0)
    weights = load_file(folder / WEIGHTS)
    own = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in weights.items()}:
        raise MissingInput(f"{folder} holds adapters of another model than {made['base_model_name_or_path']}")
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    return adapted
