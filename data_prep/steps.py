"""One optimizer step as all ranks see it, and the share of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.windows import PackedRow, Window

EMPTY = PackedRow(())
"""Fills up the last batch; carries no token and no weight."""


@dataclass(frozen=True)
class GlobalStep:
    """What all ranks together train on in one optimizer step. The per-source tuples follow ``Stream.names``."""

    index: int
    """0 for the first step of the run."""
    rows: tuple[PackedRow, ...]
    """Exactly ``global_size``; the last step of the data may end in empty rows."""
    samples: int
    tokens: int
    targets: int
    """Supervised tokens that have a predecessor in their sample: the denominator of the loss."""
    source_samples: tuple[int, ...]
    source_tokens: tuple[int, ...]
    epochs: tuple[float, ...]
    """How often each source has been used after this step: its samples so far / its rows."""


@dataclass(frozen=True)
class Part:
    """Rows ``first`` to ``last`` (exclusive) of a window."""

    window: Window
    first: int
    last: int


def assemble(index: int, parts: Sequence[Part], *, source_rows: Sequence[int], global_size: int) -> GlobalStep:
    """The step of these rows, filled up with empty ones. ``source_rows`` are the rows of each source."""
    size = len(source_rows)
    rows = tuple(row for part in parts for row in part.window.rows[part.first : part.last])
    spans = [(part.window, slice(part.window.ends[part.first], part.window.ends[part.last])) for part in parts]
    source = np.concatenate([window.source[span] for window, span in spans])
    tokens = np.concatenate([window.tokens[span] for window, span in spans])
    targets = np.concatenate([window.targets[span] for window, span in spans])
    window, last = parts[-1].window, parts[-1].last
    used = np.array(window.place.before) + np.bincount(window.source[: window.ends[last]], minlength=size)
    # Float64 counts tokens exactly up to 2^53.
    source_tokens = np.bincount(source, weights=tokens, minlength=size)
    return GlobalStep(
        index=index,
        rows=rows + (EMPTY,) * (global_size - len(rows)),
        samples=len(source),
        tokens=int(tokens.sum()),
        targets=int(targets.sum()),
        source_samples=tuple(np.bincount(source, minlength=size).tolist()),
        source_tokens=tuple(int(each) for each in source_tokens),
        epochs=tuple((used / np.array(source_rows)).tolist()),
    )


def rank_rows(step: GlobalStep, rank: int, world: int) -> tuple[PackedRow, ...]:
    """The rows of one rank: a contiguous block of ceil(global_size / world), empty rows where the batch has no more."""
    block = -(-len(step.rows) // world)
    mine = step.rows[rank * block : (rank + 1) * block]
    return mine + (EMPTY,) * (block - len(mine))
