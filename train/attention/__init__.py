"""Attention backends, one file each, and the choice among them.

A module of this folder with a ``RANK`` is a backend. It has

- ``RANK``: ``attention=auto`` tries the backends in this order, the smallest first,
- ``ATTENTION``: its name and what it can do,
- ``require(family, pack=, dtype=, device=)``, which returns its ``Attention`` for a run, or raises ConfigError with one
  sentence of four parts: what was asked, what was found, which rule failed, which setting works.

Packed rows whose samples are not isolated from one another are refused, never warned about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

import torch

from conf.errors import ConfigError
from train.attention.selftest import measure
from train.attention.types import Asked, Attention
from train.families import Family

__all__ = ["Asked", "Attention", "backends", "choose"]

Require = Callable[..., Attention]
NOTHING = Asked()


def _module(name: str) -> ModuleType:
    return import_module(f"train.attention.{name}")


def backends() -> list[str]:
    """The backends in the order in which ``auto`` tries them.

    The newest kernels come first where someone installed them, then PyTorch's own. Flat layouts have no padding at all,
    so they come before padded ones with pack=none too.
    """
    found = (module.name for module in iter_modules(__path__))
    return sorted((name for name in found if hasattr(_module(name), "RANK")), key=lambda name: _module(name).RANK)


def choose(
    backend: str,
    *,
    family: Family,
    pack: str,
    dtype: torch.dtype,
    device: torch.device,
    asked: Asked = NOTHING,
) -> Attention:
    """The backend ``attention=backend`` of a run, after its start-up self-test; ``auto``: the best that passes.

    ``pack`` is ``data.pack``. Raises ConfigError if the backend cannot do what the run asks of it.
    """
    if pack == "exact" and not family.packing:
        raise ConfigError(
            f"data.pack: exact was asked for a model of type {family.model_type}, {family.reason}, and packed samples "
            "that can see one another are refused; data.pack=none works"
        )
    refusals: list[str] = []
    for name in backends() if backend == "auto" else (backend,):
        try:
            require: Require = _module(name).require
            found = require(family, pack=pack, dtype=dtype, device=device)
            _refuse_what_it_cannot(found, asked)
            return _tested(found, family, dtype, device, asked.share)
        except ConfigError as refusal:
            refusals += refusal.problems
    raise ConfigError(refusals)


def _refuse_what_it_cannot(attention: Attention, asked: Asked) -> None:
    if asked.rows == "padded" and attention.layout != "padded":
        raise ConfigError(
            f"attention: {attention.name} lays samples end to end, and the tuning method needs each in a padded row of "
            "its own; attention=sdpa works"
        )
    if asked.share and not attention.shares:
        raise ConfigError(
            f"attention: {attention.name} cannot let the samples of a row share a prefix, which data.share_prefix=true "
            "asks for; data.share_prefix=false works"
        )
    if asked.slices > 1 and not attention.exchanges:
        raise ConfigError(
            f"attention: {attention.name} cannot attend over a row that is sliced over ranks, which "
            f"compute.sequence_parallel={asked.slices} asks for; attention=packed or compute.sequence_parallel=1 works"
        )


def _tested(attention: Attention, family: Family, dtype: torch.dtype, device: torch.device, share: bool) -> Attention:
    """``attention`` with its measured error, or ConfigError if it failed.

    Not tested: padded rows, which hold one sample, and a family's own attention over transformers' own mask.
    """
    if attention.layout == "padded" or attention.implementation == "eager":
        return attention
    tests = [
        measure(attention.implementation, dtype=dtype, device=device, capped=family.soft_cap, shared=each)
        for each in ((False, True) if share else (False,))
    ]
    result = max(tests, key=lambda test: (not test.passed, test.error))
    if not result.passed:
        raise ConfigError(
            f"attention: {attention.name} was asked for, and on {device.type} in {dtype} its self-test found an error "
            f"of {result.error:.1e} (allowed {result.allowed:.0e}) and a leak between samples of {result.leak:.1e} "
            "(allowed 0); attention=sdpa works"
        )
    return replace(attention, error=result.error)
