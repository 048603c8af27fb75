"""Attention backends, one file each, and the choice among them.

Every backend module has ``require(family, pack=, dtype=, device=)``, which returns an ``Attention`` or raises
ConfigError with one sentence of four parts: what was asked, what was found, which rule failed, which line works.
Packed rows whose samples are not isolated from one another are refused, never warned about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import torch

from conf.errors import ConfigError
from train.attention.selftest import measure
from train.attention.types import Attention
from train.models import Family

__all__ = ["PREFERENCE", "Attention", "choose"]

PREFERENCE = ("flash4", "flash3", "packed", "flash2", "sdpa")
"""What ``auto`` tries, best first: the newest kernels where someone installed them, then PyTorch's own. Flat layouts
carry no padding at all, so they come first with pack=none as well."""

Require = Callable[..., Attention]


def choose(
    backend: str,
    *,
    family: Family,
    pack: str,
    dtype: torch.dtype,
    device: torch.device,
    share: bool = False,
    slices: int = 1,
) -> Attention:
    """The backend ``attention=backend`` of a run, after its start-up self-test; ``auto``: the best that passes.

    ``pack`` is ``data.pack``; ``share``: samples of a row share prefixes; ``slices``: ranks that share a row. Raises
    ConfigError if the backend cannot do what the run asks of it.
    """
    if pack == "exact" and not family.packing:
        raise ConfigError(
            f"data.pack: exact was asked for a model of type {family.model_type}, {family.reason}, and packed samples "
            "that can see one another are refused; data.pack=none works"
        )
    refusals: list[str] = []
    for name in PREFERENCE if backend == "auto" else (backend,):
        try:
            found = _require(name)(family, pack=pack, dtype=dtype, device=device)
            _refuse_what_it_cannot(found, share, slices)
            return _tested(found, family, dtype, device, share)
        except ConfigError as refusal:
            refusals += refusal.problems
    raise ConfigError(refusals)


def _require(backend: str) -> Require:
    require: Require = import_module(f"train.attention.{backend}").require
    return require


def _refuse_what_it_cannot(attention: Attention, share: bool, slices: int) -> None:
    if share and not attention.shares:
        raise ConfigError(
            f"attention: {attention.name} cannot let the samples of a row share a prefix, which data.share_prefix=true "
            "asks for; data.share_prefix=false works"
        )
    if slices > 1 and not attention.exchanges:
        raise ConfigError(
            f"attention: {attention.name} cannot attend over a row that is sliced over ranks, which "
            f"compute.sequence_parallel={slices} asks for; attention=packed or compute.sequence_parallel=1 works"
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
