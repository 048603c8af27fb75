"""Full tuning: every parameter is trained."""

from __future__ import annotations

from torch import nn

from conf.schema import FullTuning
from train.models import Family


def apply(model: nn.Module, tuning: FullTuning, family: Family, *, seed: int) -> nn.Module:
    """Make every parameter trainable; nothing new is created, so ``seed`` has no effect."""
    return model.requires_grad_(True)


def merge(model: nn.Module) -> nn.Module:
    """The model itself: nothing was added."""
    return model
