"""Seeds, and the switches that make kernels repeat bit for bit (``compute.deterministic``)."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from conf.errors import ConfigError
from conf.schema import ComputeConfig

NCCL_PINS = {
    "NCCL_ALGO": "Ring",  # the only algorithm that has every collective; NCCL refuses one that lacks some
    "NCCL_PROTO": "Simple",
    "NCCL_MIN_NCHANNELS": "8",
    "NCCL_MAX_NCHANNELS": "8",
}
"""Left to itself, NCCL takes these from the links and network cards that it finds and from the size of a message. Then
the order in which ranks are added, and with it the last bits, depends on the nodes. Eight channels: one per card of a
usual node."""


def seed_everything(seed: int, rank: int) -> None:
    """Every generator of this rank; ranks differ, so that dropout masks do."""
    mixed = (seed * 1_000_003 + rank) % 2**32
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def fix_kernels() -> None:
    """Deterministic algorithms everywhere, NCCL's too. Must run before the process group exists and before CUDA is
    initialised by a matrix product. Variables that the user has set stay; the run's first event shows them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    for name, value in NCCL_PINS.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # compute.kernels=compile: no choice by measured times
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def check_threads(compute: ComputeConfig, device: torch.device) -> None:
    """Raise ConfigError (78) if the threads of a process would follow from the number of processes."""
    if device.type == "cpu" and not compute.threads:
        raise ConfigError(
            "compute.threads: 0 divides the cores among the processes, and the sums inside a matrix product depend on "
            "the threads, so compute.reproducible=true would not hold; set compute.threads=1, or another number, in "
            "all runs that are compared"
        )
