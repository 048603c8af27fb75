"""Seeds, and the switches that make kernels repeat bit for bit (``compute.deterministic``)."""

from __future__ import annotations

import os
import random

import numpy as np
import torch


def seed_everything(seed: int, rank: int) -> None:
    """Every generator of this rank; ranks differ, so that dropout masks do."""
    mixed = (seed * 1_000_003 + rank) % 2**32
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def fix_kernels() -> None:
    """Deterministic algorithms everywhere; must run before CUDA is initialised by a matrix product."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
