"""Random corpora for benchmarks: lengths only, from a fixed seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conf.schema import DataConfig, SourceConfig, StopConfig

Shapes = dict[str, tuple[float, float, float]]

MIXED: Shapes = {"alpaca": (0.25, 105.0, 0.6), "zero_shot": (0.40, 130.0, 0.8), "few_shot": (0.35, 420.0, 0.8)}
ALPACA: Shapes = {"alpaca": (1.0, 95.0, 0.55)}
"""Share of the samples; median and sigma of lognormal lengths in tokens (the sets of the packing table in docs)."""


@dataclass(frozen=True)
class MadeSplit:
    """The lengths and targets of samples without tokens."""

    lengths: NDArray[np.uint16]
    targets: NDArray[np.uint16]

    @property
    def rows(self) -> int:
        return len(self.lengths)


def mixture(shapes: Shapes, *, rows: int, seq_len: int) -> tuple[dict[str, MadeSplit], DataConfig]:
    """``rows`` samples in these sources for one epoch, drawn in proportion to the sources' sizes."""
    draw = np.random.default_rng(0)
    splits = {}
    for name, (share, median, sigma) in shapes.items():
        lengths = draw.lognormal(np.log(median), sigma, int(rows * share)).clip(16, seq_len).astype(np.uint16)
        splits[name] = MadeSplit(lengths, lengths // np.uint16(2))
    sources = {name: SourceConfig(format="alpaca", path=f"{name}.json") for name in splits}
    return splits, DataConfig(sources=sources, stop=StopConfig(epochs=1.0), seq_len=seq_len, share_prefix=False)
