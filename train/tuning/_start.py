"""First values of new weights: drawn by the run's seed and the parameter's name alone.

So they are the same on every rank, world size and ZeRO stage, and do not depend on the order of modules.
"""

from __future__ import annotations

import hashlib

import torch


def generator_for(name: str, seed: int) -> torch.Generator:
    """A CPU generator that belongs to the parameter ``name`` of a run with ``seed``."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def uniform(name: str, shape: torch.Size | tuple[int, ...], bound: float, seed: int) -> torch.Tensor:
    """fp32 on the CPU, uniform in +-``bound``."""
    drawn = torch.rand(shape, generator=generator_for(name, seed), dtype=torch.float32)
    return (2.0 * drawn - 1.0) * bound
