"""Norm tuning: the scales of the norms alone are trained, as in LN tuning (Qi et al. 2022)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from conf.errors import ConfigError

FOLDER = None  # the result is a whole model


def apply(model: nn.Module, tuning: Any, family: Any, *, seed: int) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() == 1 or getattr(parameter, "ds_shape", (0, 0))[1:] == ())
    return model


def merge(model: nn.Module) -> nn.Module:
    return model


def save(model: nn.Module, tuning: Any, folder: Path, *, base: str) -> None:
    raise ConfigError("merge=false: what tuning=norms trains is the model itself; use merge=true")
