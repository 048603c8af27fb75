"""The states of every random generator of a rank, as tensors that a checkpoint can hold."""

from __future__ import annotations

import random

import numpy as np
import torch

from train.ranks.group import Ranks


def random_states(ranks: Ranks) -> dict[str, torch.Tensor]:
    """States of Python's, numpy's, torch's and the device's generators, as tensors."""
    python = torch.tensor(random.getstate()[1], dtype=torch.int64)
    _, keys, position, *_ = np.random.get_state()
    numpy = torch.from_numpy(np.append(np.asarray(keys, dtype=np.int64), int(position)))
    states = {"python": python, "numpy": numpy, "torch": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(ranks.device)
    return states


def set_random_states(states: dict[str, torch.Tensor], ranks: Ranks) -> None:
    """The inverse of ``random_states``."""
    random.setstate((3, tuple(states["python"].tolist()), None))
    numpy = states["numpy"].numpy()
    np.random.set_state(("MT19937", numpy[:-1].astype(np.uint32), int(numpy[-1]), 0, 0.0))
    torch.set_rng_state(states["torch"])
    if "device" in states and ranks.device.type == "cuda":
        torch.cuda.set_rng_state(states["device"], ranks.device)
