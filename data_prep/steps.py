"""One optimizer step as all ranks see it, and the share of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from data_prep.windows import Ints, PackedRow, Window

EMPTY = PackedRow(())
"""Fills up the last batch; carries no token and no weight."""


@dataclass(frozen=True)
class Part:
    """Rows ``first`` to ``last`` (exclusive) of a window."""

    window: Window
    first: int
    last: int

    @property
    def samples(self) -> slice:
        """Where their samples are in the window's arrays."""
        return slice(self.window.ends[self.first], self.window.ends[self.last])

    @property
    def totals(self) -> Ints:
        """[4] of these rows, as in ``Window.totals``."""
        return self.window.totals[:, self.last] - self.window.totals[:, self.first]


class StepRows(Sequence[PackedRow]):
    """The ``size`` rows of a step, empty ones at the end; each is made when it is asked for."""

    def __init__(self, parts: Sequence[Part], size: int) -> None:
        self._parts, self._size = parts, size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> PackedRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[PackedRow, ...]: ...
    def __getitem__(self, index: int | slice) -> PackedRow | tuple[PackedRow, ...]:
        chosen = range(self._size)[index]
        if isinstance(chosen, int):
            return self[chosen : chosen + 1][0]
        if chosen.step != 1:
            return tuple(self[number] for number in chosen)
        rows, begin = list[PackedRow](), 0
        for part in self._parts:
            shift, end = part.first - begin, begin + part.last - part.first
            first, last = max(chosen.start, begin), min(chosen.stop, end)
            if first < last:
                rows += part.window.packed(first + shift, last + shift)
            begin = end
        return (*rows, *[EMPTY] * (len(chosen) - len(rows)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


@dataclass(frozen=True)
class GlobalStep:
    """What all ranks together train on in one optimizer step. The per-source tuples follow ``Stream.names``."""

    index: int
    """0 for the first step of the run."""
    rows: Sequence[PackedRow]
    """Exactly ``global_size``; the last step of the data may end in empty rows."""
    filled: int
    """Rows that are not empty."""
    samples: int
    tokens: int
    """Of all samples, whole."""
    positions: int
    """Tokens that are computed: prefixes that samples of a row share count once."""
    pairs: int
    """(computed token, itself or an earlier token of its sample): what causal attention looks at."""
    targets: int
    """Supervised tokens that have a predecessor in their sample: the denominator of the loss."""
    source_samples: tuple[int, ...]
    source_tokens: tuple[int, ...]
    epochs: tuple[float, ...]
    """How often each source has been used after this step: its samples so far / its rows."""


def assemble(index: int, parts: Sequence[Part], *, source_rows: Sequence[int], global_size: int) -> GlobalStep:
    """The step of these rows, filled up with empty ones. ``source_rows`` are the rows of each source."""
    size = len(source_rows)
    source = np.concatenate([part.window.source[part.samples] for part in parts])
    weights = np.concatenate([part.window.tokens[part.samples] for part in parts])
    tokens, targets, spared, pairs = np.sum([part.totals for part in parts], axis=0).tolist()
    window, last = parts[-1].window, parts[-1].last
    used = np.array(window.place.before) + np.bincount(window.source[: window.ends[last]], minlength=size)
    # Float64 counts tokens exactly up to 2^53.
    source_tokens = np.bincount(source, weights, minlength=size).astype(np.int64)
    return GlobalStep(
        index=index,
        rows=StepRows(parts, global_size),
        filled=sum(part.last - part.first for part in parts),
        samples=len(source),
        tokens=tokens,
        positions=tokens - spared,
        pairs=pairs,
        targets=targets,
        source_samples=tuple(np.bincount(source, minlength=size).tolist()),
        source_tokens=tuple(source_tokens.tolist()),
        epochs=tuple((used / np.array(source_rows)).tolist()),
    )


def rank_rows(step: GlobalStep, rank: int, world: int) -> tuple[PackedRow, ...]:
    """The rows of one rank: a contiguous block of ceil(global_size / world), empty rows where the batch has no more."""
    block = -(-len(step.rows) // world)
    mine = tuple(step.rows[rank * block : (rank + 1) * block])
    return mine + (EMPTY,) * (block - len(mine))
