"""The corpus of ``data_engine``: six sources of random tokens from a fixed seed. It needs only numpy, so it runs in
every loader's environment.

The sources have the sizes of an Alpaca file and five parts of FLAN, and lognormal lengths. A sample's first two tokens
are the numbers of its source and of itself in it, so that a loader's output identifies the samples that it read.
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
    """Share of the mixture's draws."""
    median: float
    """Median length in tokens."""
    sigma: float
    """Standard deviation of the lengths' logarithm."""


SHAPES = {
    "alpaca": Shape(52_002, 0.25, 95.0, 0.55),
    "cot": Shape(30_000, 0.0375, 180.0, 0.6),
    "dialog": Shape(12_000, 0.0225, 250.0, 0.5),
    "few_shot": Shape(60_000, 0.24, 380.0, 0.7),
    "niv2": Shape(24_000, 0.15, 300.0, 0.7),
    "zero_shot": Shape(84_000, 0.30, 130.0, 0.8),
}
"""In the order of their names; a sample's first token is the index of its source in this order."""


@dataclass(frozen=True)
class Source:
    """One source as memory-mapped arrays; a sample is a slice of them."""

    ids: NDArray[np.int32]
    mask: NDArray[np.uint8]
    ends: NDArray[np.int64]
    """[rows + 1] the index where each sample begins, and the number of all tokens."""

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: int) -> dict[str, NDArray[np.int32] | NDArray[np.uint8]]:
        span = slice(self.ends[row], self.ends[row + 1])
        return {"input_ids": self.ids[span], "loss_mask": self.mask[span]}

    def __iter__(self) -> Iterator[dict[str, NDArray[np.int32] | NDArray[np.uint8]]]:
        return (self[row] for row in range(len(self)))


def make(folder: Path, *, divisor: int = 1) -> int:
    """Write all sources to ``folder``, with rows / ``divisor`` samples per source; return the number of all tokens."""
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
        # asarray returns a plain view of the map; slices of np.memmap itself take several times as long.
        return np.asarray(np.load(folder / f"{name}.{kind}.npy", mmap_mode="r"))

    return {name: Source(*(mapped(name, kind) for kind in ("ids", "mask", "ends"))) for name in SHAPES}
