"""One optimizer step as all ranks see it, and the share of one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from conf.whole_numbers import ceil_div
from data_prep.stream.windows import Ints, PackedRow, Window

EMPTY = PackedRow(())
"""A row without samples, which completes the last batch; it has no token and no weight in the loss."""


@dataclass(frozen=True)
class Part:
    """Rows ``first`` to ``last`` (exclusive) of a window."""

    window: Window
    first: int
    last: int

    @property
    def samples(self) -> slice:
        """The samples of these rows in the window's arrays."""
        return slice(self.window.ends[self.first], self.window.ends[self.last])

    @property
    def totals(self) -> Ints:
        """[4] of these rows, as in ``Window.totals``."""
        return self.window.totals[:, self.last] - self.window.totals[:, self.first]

    @property
    def weight(self) -> float:
        """The sum of the weights of the targets of these rows, in float64."""
        assert self.window.weights is not None
        return float(self.window.weights[self.samples].sum())


class StepRows(Sequence[PackedRow]):
    """The ``size`` rows of a step, empty rows at the end; a row is made when it is read."""

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

    def samples(self) -> Ints:
        """[size] The number of samples of every row; makes no row."""
        counts = np.zeros(self._size, dtype=np.int64)
        begin = 0
        for part in self._parts:
            end = begin + part.last - part.first
            counts[begin:end] = np.diff(np.asarray(part.window.ends)[part.first : part.last + 1])
            begin = end
        return counts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


@dataclass(frozen=True)
class GlobalStep:
    """The global batch of one optimizer step. The tuples per source are in the order of ``Stream.names``."""

    index: int
    """0 for the first step of the run."""
    rows: Sequence[PackedRow]
    """``global_size`` of them, of which the last step of the data may leave some empty; fewer, and none empty, where
    samples share prefixes."""
    filled: int
    """Rows that are not empty."""
    samples: int
    tokens: int
    """Tokens of all samples, shared prefixes counted in every sample."""
    positions: int
    """Tokens that are computed: a prefix that samples of a row share counts once."""
    pairs: int
    """Pairs (computed token, itself or an earlier token of its sample), which causal attention computes."""
    targets: int
    """Tokens that are predicted and count: those the mask marks that have a predecessor in their sample."""
    weight: float
    """The sum of the weights of the targets, ``targets`` where every target counts 1: the denominator of the loss."""
    source_samples: tuple[int, ...]
    source_tokens: tuple[int, ...]
    epochs: tuple[float, ...]
    """Epochs of every source after this step: its samples so far / its rows."""


def assemble(
    index: int,
    parts: Sequence[Part],
    *,
    source_rows: Sequence[int],
    global_size: int,
    grouped: Callable[[Sequence[Part]], Window] | None = None,
) -> GlobalStep:
    """The step of these rows, completed with empty rows; or with its samples as ``grouped`` deals them to rows.

    ``source_rows`` are the numbers of rows of the sources.
    """
    size = len(source_rows)
    window, last = parts[-1].window, parts[-1].last
    used = np.array(window.place.before) + np.bincount(window.source[: window.ends[last]], minlength=size)
    if grouped is not None:
        window = grouped(parts)
        parts, global_size = [Part(window, 0, window.rows)], window.rows
    source = np.concatenate([part.window.source[part.samples] for part in parts])
    weights = np.concatenate([part.window.tokens[part.samples] for part in parts])
    tokens, targets, spared, pairs = np.sum([part.totals for part in parts], axis=0).tolist()
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
        weight=float(targets) if parts[0].window.weights is None else sum(part.weight for part in parts),
        source_samples=tuple(np.bincount(source, minlength=size).tolist()),
        source_tokens=tuple(source_tokens.tolist()),
        epochs=tuple((used / np.array(source_rows)).tolist()),
    )


def rank_rows(step: GlobalStep, rank: int, world: int, block: int = 0) -> tuple[PackedRow, ...]:
    """The rows of one rank, empty rows where the batch has no more.

    Blocks of ``block`` rows are dealt to the ranks in turn. 0: one block each, of ceil(global_size / world) rows.
    """
    block, turns = _dealing(len(step.rows), world, block)
    mine = list[PackedRow]()
    for turn in range(turns):
        first = (turn * world + rank) * block
        some = step.rows[first : first + block]
        mine += [*some, *[EMPTY] * (block - len(some))]
    return tuple(mine)


def most_samples(step: GlobalStep, world: int, block: int = 0) -> int:
    """The largest number of samples that one of ``world`` ranks has (``rank_rows``)."""
    return int(_dealt_samples(step, world, block).sum(axis=0).max())


def _dealing(rows: int, world: int, block: int) -> tuple[int, int]:
    """Rows per block, and blocks per rank."""
    block = block or ceil_div(rows, world)
    return block, ceil_div(rows, world * block)


def _dealt_samples(step: GlobalStep, world: int, block: int) -> Ints:
    """[turns, world] The number of samples of every block."""
    rows = step.rows
    block, turns = _dealing(len(rows), world, block)
    counts = np.zeros(turns * world * block, dtype=np.int64)
    counts[: len(rows)] = rows.samples() if isinstance(rows, StepRows) else [len(row.samples) for row in rows]
    dealt: Ints = counts.reshape(turns, world, block).sum(axis=2)
    return dealt
