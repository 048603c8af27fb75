"""What the FlashAttention packages have in common: kernels for CUDA and 16-bit numbers, called through transformers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass

import torch

from conf.errors import ConfigError
from train.attention.types import Attention
from train.families import Family


@dataclass(frozen=True)
class Package:
    """One generation of kernels, as its package index and Python know it."""

    module: str
    """What must be importable."""
    distribution: str
    """The installed package that provides it."""
    versions: str
    """How its version must begin; empty: any."""
    install: str
    majors: tuple[int, ...]
    """Major compute capabilities of the GPUs it has kernels for: 8 Ampere and Ada, 9 Hopper, 10 and 12 Blackwell."""


def require_package(
    attention: Attention, package: Package, family: Family, *, dtype: torch.dtype, device: torch.device
) -> Attention:
    """``attention``, which ``package`` computes.

    Raises ConfigError: what was asked, what was found, which rule failed, which setting works.
    """
    asked = f"attention: {attention.name} was asked for"
    if not family.interface:
        raise ConfigError(f"{asked} a model of type {family.model_type}, {family.reason}; attention=auto works")
    if device.type != "cuda":
        raise ConfigError(
            f"{asked} and a {device.type} device was found, but its kernels are for CUDA only; attention=packed works"
        )
    version = _version(package)
    if version is None:
        raise ConfigError(
            f"{asked} and no {package.module} package was found, which it needs ({package.install}); "
            "attention=packed works without it"
        )
    if not version.startswith(package.versions):
        raise ConfigError(
            f"{asked} and {package.distribution} {version} was found, but it needs {package.versions}x; "
            "attention=packed works"
        )
    if dtype not in (torch.bfloat16, torch.float16):
        raise ConfigError(
            f"{asked} with {dtype}, but its kernels take 16-bit numbers only; model.dtype=bf16 or attention=auto works"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if major not in package.majors:
        known = ", ".join(f"{each}.x" for each in package.majors)
        raise ConfigError(
            f"{asked} on a GPU of compute capability {major}.{minor}, but its kernels are for {known}; "
            "attention=packed works"
        )
    return attention


def _version(package: Package) -> str | None:
    """The installed version, or None unless both the distribution and the module are there."""
    try:
        # The parent of a dotted module is imported to look inside it.
        if importlib.util.find_spec(package.module) is None:
            return None
        return importlib.metadata.version(package.distribution)
    except (ModuleNotFoundError, importlib.metadata.PackageNotFoundError):
        return None
