"""The corpus of ``data_engine``: six sources of made-up tokens, from a fixed seed; numpy only, for every environment.

Shaped like an Alpaca file and five parts of FLAN: their rows, lognormal lengths. A sample's first two tokens are its
source and its row in it, so that whatever a loader gives out says what was read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SEQ_LEN = 2048
SHORTEST = 16
VOCABULARY = 100_000


@dataclass(frozen=True)
class Shape:
    rows: int
    weight: float
    """Share of the draws of the mixture."""
    median: float
    """Of the lengths, tokens."""
    sigma: float
    """Of the logarithm of the lengths."""


SHAPES = {
    "alpaca": Shape(52_002, 0.25, 95.0, 0.55),
    "cot": Shape(30_000, 0.0375, 180.0, 0.6),
    "dialog": Shape(12_000, 0.0225, 250.0, 0.5),
    "few_shot": Shape(60_000, 0.24, 380.0, 0.7),
    "niv2": Shape(24_000, 0.15, 300.0, 0.7),
    "zero_shot": Shape(84_000, 0.30, 130.0, 0.8),
}
"""In the order of their names: a sample's first token is the place in here."""


@dataclass(frozen=True)
class Source:
    """One source as plain arrays: memory-mapped, a sample is a slice."""

    ids: NDArray[np.int32]
    mask: NDArray[np.uint8]
    ends: NDArray[np.int64]
    """[rows + 1] where each sample begins, and the tokens of all."""

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: int) -> dict[str, NDArray[np.int32] | NDArray[np.uint8]]:
        span = slice(self.ends[row], self.ends[row + 1])
        return {"input_ids": self.ids[span], "loss_mask": self.mask[span]}

    def __iter__(self) -> Iterator[dict[str, NDArray[np.int32] | NDArray[np.uint8]]]:
        return (self[row] for row in range(len(self)))


def make(folder: Path, *, divisor: int = 1) -> int:
    """Write all sources to ``folder``, each with rows / ``divisor`` rows; gives the tokens of all."""
    folder.mkdir(parents=True)
    total = 0
    for number, (name, shape) in enumerate(SHAPES.items()):
        draw = np.random.default_rng(number)
        lengths = draw.lognormal(np.log(shape.median), shape.sigma, shape.rows // divisor)
        ends = np.concatenate([[0], np.cumsum(lengths.clip(SHORTEST, SEQ_LEN).astype(np.int64))])
        ids = draw.integers(0, VOCABULARY, ends[-1], np.int32)
        ids[ends[:-1]], ids[ends[:-1] + 1] = number, np.arange(len(lengths))
        # The second half of a sample is the answer.
        middles = ends[:-1] + np.diff(ends) // 2
        edges = np.zeros(len(ids) + 1, np.int8)
        edges[middles] += 1
        edges[ends[1:]] -= 1
        mask = np.cumsum(edges[:-1], dtype=np.int8).astype(np.uint8)
        for kind, values in (("ids", ids), ("mask", mask), ("ends", ends)):
            np.save(folder / f"{name}.{kind}.npy", values)
        total += len(ids)
    return total


def read(folder: Path) -> dict[str, Source]:
    """The sources that ``make`` wrote."""

    def mapped(name: str, kind: str) -> NDArray[np.generic]:
        # asarray: a plain view of the map; slices of np.memmap itself cost several times as much.
        return np.asarray(np.load(folder / f"{name}.{kind}.npy", mmap_mode="r"))

    return {name: Source(*(mapped(name, kind) for kind in ("ids", "mask", "ends"))) for name in SHAPES}
