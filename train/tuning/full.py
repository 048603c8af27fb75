"""Full tuning: every parameter is trained, but for those that ``tuning.freeze`` names."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from conf.errors import ConfigError
from conf.schema import FullTuning
from train.families import Family
from train.tuning._names import above, holds, refuse_unknown

FOLDER = None
"""Its result is a whole model."""


def apply(model: nn.Module, tuning: FullTuning, family: Family, *, seed: int) -> nn.Module:
    """Make every parameter trainable that no pattern of ``tuning.freeze`` fits; nothing new is made from ``seed``.

    Raises ConfigError for a pattern that fits nothing, and where nothing would be left to train.
    """
    model.requires_grad_(True)
    # With the second names of tied weights: whoever freezes the head freezes the embedding that it is.
    named = dict(model.named_parameters(remove_duplicate=False))
    unknown = [pattern for pattern in tuning.freeze if not any(holds(name, pattern) for name in named)]
    refuse_unknown("tuning.freeze", unknown, above(named))
    for name, parameter in named.items():
        if any(holds(name, pattern) for pattern in tuning.freeze):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("tuning.freeze: these patterns freeze every parameter, so nothing would be learnt; drop some")
    return model


def merge(model: nn.Module) -> nn.Module:
    """The model itself: nothing was added."""
    return model


def save(model: nn.Module, tuning: FullTuning, folder: Path, *, base: str) -> None:
    """Raises ConfigError: there are no adapters to save."""
    raise ConfigError("merge=false keeps adapters apart, and this run tuned every weight; leave merge out")
