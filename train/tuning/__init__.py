"""Tuning methods, one file each, named after ``tuning.method``: what is trained, and what becomes of it.

Each module has ``apply(model, tuning, family, seed=)``, which makes exactly the right parameters trainable, and
``merge(model)``, which gives back a plain transformers model. ``trainable`` is the same for all.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from torch import nn

from conf.schema import FullTuning, LoraTuning
from train.models import Family

__all__ = ["apply", "merge", "trainable"]


def _method(name: str) -> ModuleType:
    return import_module(f"train.tuning.{name}")


def apply(model: nn.Module, tuning: FullTuning | LoraTuning, family: Family, *, seed: int) -> nn.Module:
    """``model`` with ``tuning`` applied. New weights follow from ``seed`` and their names alone.

    Raises ConfigError for targets that the model does not have. Needs no weight values, so it works on ZeRO-3
    partitions.
    """
    applied: nn.Module = _method(tuning.method).apply(model, tuning, family, seed=seed)
    return applied


def merge(model: nn.Module, tuning: FullTuning | LoraTuning) -> nn.Module:
    """The plain transformers model that computes the same function, up to rounding."""
    merged: nn.Module = _method(tuning.method).merge(model)
    return merged


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by canonical name: the module path in the unwrapped model; tied weights appear once.

    The names depend on the model and the tuning only, never on ranks, ZeRO stage or recomputation.
    """
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
