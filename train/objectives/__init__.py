"""What a step minimises: one file per objective, named after ``objective.kind``, and the head that computes losses.

An objective's module has ``make(settings, targets_only=, frozen=)``, which gives an ``Objective``
(train/objectives/types.py); ``frozen`` is the base before tuning, for settings that need one.
"""

from __future__ import annotations

from importlib import import_module

from torch import nn

from conf.schema import RunConfig
from train.objectives.types import Objective, Sums

__all__ = ["Objective", "Sums", "objective_of"]


def objective_of(cfg: RunConfig, frozen: nn.Module | None) -> Objective:
    """The objective that ``cfg.objective`` names; ``frozen`` is the base, where it needs one, and None elsewhere."""
    module = import_module(f"train.objectives.{cfg.objective.kind}")
    made: Objective = module.make(cfg.objective, targets_only=cfg.compute.targets_only_head, frozen=frozen)
    return made
