"""How PyTorch takes memory from a GPU, which must be said before torch is imported."""

from __future__ import annotations

from collections.abc import MutableMapping

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""The variable that PyTorch reads, then its older names."""
GROWING = {NAMES[0]: "expandable_segments:True"}


def grow_segments(environment: MutableMapping[str, str]) -> None:
    """Let segments of the allocator grow, unless someone has set one of its variables.

    Micro-batches differ in length. In segments of fixed size what one leaves free often does not fit the next, and the
    GPU runs out of memory with gigabytes reserved that nobody uses. Without a GPU it changes nothing.
    """
    if not any(name in environment for name in NAMES):
        environment.update(GROWING)
