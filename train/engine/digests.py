"""One number per gradient of a backward pass that is thrown away: do two passes give the same bits?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from train.engine.in_order import ENDING, TAKING, intercept

CHUNK = 1 << 22
"""Elements that exist as int64 at once: 32 MiB, three times."""
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Digests:
    """Takes the gradients of this rank as they become ready. Not collective."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.found: dict[str, torch.Tensor] = {}
        """int64 scalars by name, on the device."""
        self._names = {id(parameter): name for name, parameter in parameters.items()}

    @contextmanager
    def instead_of(self, optimizer: Any) -> Iterator[None]:
        """Inside it, gradients come here, and ``optimizer``, DeepSpeed's of any stage, gets none of them."""
        before = dict(vars(optimizer))
        intercept(optimizer, self._take, lambda: None)
        try:
            yield
            for parameter in self.parameters.values():  # those that nothing has taken
                self._take(parameter)
        finally:
            for name in (*TAKING, *ENDING):
                if name in before:
                    setattr(optimizer, name, before[name])
                else:
                    vars(optimizer).pop(name, None)

    def _take(self, parameter: torch.nn.Parameter, *_: object) -> None:
        if parameter.grad is not None:
            self.found[self._names[id(parameter)]] = digest(parameter.grad.detach())
            parameter.grad = None


@torch.no_grad()
def digest(tensor: torch.Tensor) -> torch.Tensor:
    """An int64 scalar of the bits of ``tensor`` and their places: their sum, each times an odd number, modulo 2^64.

    A change of one element always changes it; changes of several cancel by a rare chance alone.
    """
    bits = tensor.reshape(-1).view(BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, bits.numel(), CHUNK):
        piece = bits[start : start + CHUNK].to(torch.int64)
        places = torch.arange(start, start + piece.numel(), device=tensor.device)
        total += (piece * (places * 0x9E3779B97F4A7C1 + 1 | 1)).sum()
    return total
