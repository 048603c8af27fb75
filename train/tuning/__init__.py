"""Tuning methods, one file each, named after ``tuning.method``: what is trained, and what becomes of it.

Each module has ``apply(model, tuning, family, seed=)``, which makes exactly the right parameters trainable,
``merge(model)``, which gives back a plain transformers model, and ``save(model, tuning, folder, base=)``, which writes
what was trained alone. ``trainable`` is the same for all.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from torch import nn

from conf.methods import Tuning
from train.adapters import virtual_tokens
from train.models import Family
from train.tuning._virtual import taken

__all__ = ["apply", "merge", "save", "taken", "trainable", "virtual_tokens"]


def _method(name: str) -> ModuleType:
    return import_module(f"train.tuning.{name}")


def apply(model: nn.Module, tuning: Tuning, family: Family, *, seed: int) -> nn.Module:
    """``model`` with ``tuning`` applied. New weights follow from ``seed``, their names and the base alone.

    Raises ConfigError for names that the model does not have. Under ZeRO-3 it is called inside the loading context,
    in which the few weights it reads are gathered (collective).
    """
    applied: nn.Module = _method(tuning.method).apply(model, tuning, family, seed=seed)
    return applied


def merge(model: nn.Module, tuning: Tuning) -> nn.Module:
    """The plain transformers model that computes the same function, up to rounding.

    Raises ConfigError for a method that no plain model can express.
    """
    merged: nn.Module = _method(tuning.method).merge(model)
    return merged


def save(model: nn.Module, tuning: Tuning, folder: Path, *, base: str) -> None:
    """Write what was trained, without the base, to ``folder``; ``base`` is where others find the base.

    Raises ConfigError for a method whose result is the whole model.
    """
    _method(tuning.method).save(model, tuning, folder, base=base)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by canonical name: the module path in the unwrapped model; tied weights appear once.

    The names depend on the model and the tuning only, never on ranks, ZeRO stage or recomputation.
    """
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
