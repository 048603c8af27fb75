"""Start-up proof that attention's backward pass gives the same bits every time (``compute.deterministic``).

Kernels that add up gradients with atomic operations differ from run to run, but rarely in every run, so it is repeated.
The rows are long enough for several blocks of a kernel.
"""

from __future__ import annotations

import itertools

import torch

from train.attention.selftest import Probe
from train.attention.types import Attention

TIMES = 30
LENGTHS = (700, 1, 323)
HEADS, KEY_HEADS, HEAD_SIZE = 8, 2, 64


def repeats(attention: Attention, *, dtype: torch.dtype, device: torch.device, capped: bool) -> bool:
    """Whether ``TIMES`` backward passes over the same random row give the same bits.

    A family's own attention (eager) is not called, because its kernels are those of the model, which the run tests.
    """
    if attention.implementation == "eager":
        return True
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    shapes = [(1, heads, total, HEAD_SIZE) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    inputs = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
    pull = torch.randn((1, total, HEADS, HEAD_SIZE), generator=generator).to(device, dtype)
    bounds = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32, device=device)
    first: list[torch.Tensor] = []
    for _ in range(TIMES):
        out, _ = ALL_ATTENTION_FUNCTIONS[attention.implementation](
            Probe(attention.implementation, HEADS // KEY_HEADS),
            *inputs,
            None,
            dropout=0.0,
            scaling=HEAD_SIZE**-0.5,
            softcap=1.0 if capped else None,
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=max(LENGTHS),
            max_length_k=max(LENGTHS),
        )
        found = [out.detach(), *torch.autograd.grad(out, inputs, pull)]
        first = first or found
        if not all(torch.equal(a, b) for a, b in zip(first, found, strict=True)):
            return False
    return True
