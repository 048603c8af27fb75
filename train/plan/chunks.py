"""How many positions the head computes at once, as train/objectives/head.py does and train/plan knows; torch-free."""

from __future__ import annotations

from conf.whole_numbers import ceil_div

CHUNK_ELEMENTS = {"cpu": 2**25, "cuda": 2**29}
"""Logits alive at once: on a GPU 4,096 positions of a vocabulary of 128k, enough to fill its matrix units; on a CPU 128
MiB, 667 positions of GPT-2's vocabulary."""


def chunk_size(positions: int, vocab: int, kind: str = "cuda") -> int:
    """Positions of a chunk on a device of type ``kind``: all chunks but the last are of one size."""
    most = max(1, CHUNK_ELEMENTS[kind] // vocab)
    return ceil_div(positions, ceil_div(positions, most))


def padded(vocab: int) -> int:
    """Elements of a row of logits in memory: whole steps of 64, at which matrix units take rows without a detour."""
    return ceil_div(vocab, 64) * 64
