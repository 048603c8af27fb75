"""A window: consecutive draws of the mixture, shuffled and packed together. A pure function of its place in the run.

draws of the run  ->  (source, number of draw)  ->  row of the source  ->  shuffled  ->  packed  ->  rows shuffled
               quota                      permutation                permutation  exact finish  permutation

An example: source a has 3 rows of 5, 6, 7 tokens and weight 2, source b has 2 rows of 4, 8 tokens and weight 1. A
window is 3 draws, a row holds 12 tokens, the seed is 0. After 0, 3 and 6 draws of the run the quota gives the counters
(a, b) = (0, 0), (2, 1), (4, 2). Window 1 is draws 3, 4, 5 of the run, so ``before`` = (2, 1) and ``after`` = (4, 2):

    counts   2 1        ``after - before``: draws of a, of b
    source   0 0 1      each source as often as its count says
    draw     2 3 1      a's draws start at 2, b's at 1
    row      2 0 1      a has 3 rows: its draw 2 is element 2 of pass 0, its draw 3 is element 0 of pass 1; every pass
                        has its own order, by which these elements are rows 2 and 0
    tokens   7 5 8      length of that row of that source
    shuffle  1 0 2      so the samples come as a0 (5), a2 (7), b1 (8)
    packed   a0 a2 | b1 5 + 7 fill the first row of 12
    rows     b1 | a0 a2 shuffled too; ``ends`` = 0 1 3

``tests/data_prep/stream/test_worked_example.py`` holds these numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.stream.forest import Forest
from data_prep.stream.packing import pack
from data_prep.stream.permutation import key_of, keys_of, permute
from data_prep.stream.phases import Counts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SUMMED_AT_ONCE = 1 << 18
"""Draws whose rows are looked up at once: bounds memory where a large part of a source is summed."""


class Rows(Protocol):
    """The part of a prepared split that the stream needs; the code that collates reads the tokens."""

    @property
    def rows(self) -> int: ...
    @property
    def lengths(self) -> NDArray[np.integer[Any]]: ...
    @property
    def targets(self) -> NDArray[np.integer[Any]]: ...


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Samples that share one row of ``data.seq_len`` tokens, in order. A row without samples only completes a batch."""

    samples: tuple[tuple[int, int], ...]
    """(source index, row index in that source)."""
    tokens: int = field(default=0, compare=False)
    """Tokens of all samples together; 0 if the code that made the row did not count them."""
    shared: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    """Of every sample (an earlier sample of the row, tokens with which both begin and that it leaves to that one to
    compute); empty if each computes all of its own."""


@dataclass(frozen=True)
class Place:
    """The draws of the run that form a window, and the counters of the sources before and after these draws."""

    index: int
    start: int
    stop: int
    before: Counts
    after: Counts


@dataclass(frozen=True)
class Window:
    """A window as it is served. The arrays have one element per sample, in the order of the packed rows."""

    place: Place
    ends: Ints
    """[rows + 1] the first sample of each row, and the number of samples."""
    source: Ints
    row: Ints
    tokens: Ints
    targets: Ints
    prefix: Ints
    """The number of the longest prefix that a sample begins with, and others may too; 0: none."""
    spared: Ints
    """Tokens at the start of a sample that it does not compute, because an earlier sample of its row does."""
    weights: Floats | None = None
    """The sum of the weights of a sample's targets; None: every target of every source counts 1."""
    forest: Forest | None = None
    """Of the prefixes, where samples of a row share them."""

    @property
    def rows(self) -> int:
        return len(self.ends) - 1

    def packed(self, first: int, last: int) -> list[PackedRow]:
        """Rows ``first`` to ``last`` (exclusive) as objects.

        They are made on demand, because a rank plans the rows of all ranks and needs objects for its own only.
        """
        ends = self.ends[first : last + 1].tolist()
        begin, samples = ends[0], slice(ends[0], ends[-1])
        sizes = np.diff(self.totals[0, first : last + 1]).tolist()
        pairs = list(zip(self.source[samples].tolist(), self.row[samples].tolist(), strict=True))
        return [
            PackedRow(tuple(pairs[start - begin : end - begin]), tokens, self._shared(start, end))
            for (start, end), tokens in zip(pairwise(ends), sizes, strict=True)
        ]

    def _shared(self, start: int, end: int) -> tuple[tuple[int, int], ...]:
        """``PackedRow.shared`` of these samples."""
        if self.forest is None or not self.spared[start:end].any():
            return ()
        return tuple(self.forest.shared_in(self.prefix[start:end].tolist()))

    @cached_property
    def totals(self) -> Ints:
        """[4, rows + 1] of all rows before each: tokens, targets, spared tokens, and pairs of which one token sees the
        other or itself. Once per window, because a call of numpy costs more than the sum over a step."""
        tokens, spared = self.tokens, self.spared
        pairs = (tokens * (tokens + 1) - spared * (spared + 1)) // 2
        found = np.zeros((4, len(self.ends)), np.int64)
        of_rows = np.add.reduceat([tokens, self.targets, spared, pairs], self.ends[:-1], axis=1)
        np.cumsum(of_rows, axis=1, out=found[:, 1:])
        return found


class Planner:
    """Looks up the samples of a window and packs them. ``splits`` are in the order of the counters.

    ``tokens`` holds the number of tokens of every source.
    """

    def __init__(
        self, splits: Mapping[str, Rows], *, seed: int, seq_len: int, packing: Literal["exact", "none"]
    ) -> None:
        self._lengths = [split.lengths for split in splits.values()]
        self._targets = [split.targets for split in splits.values()]
        weights = [getattr(split, "row_weights", None) for split in splits.values()]
        self._weights: list[NDArray[Any]] | None = None
        """Of each source the weight of its rows' targets, if one has weights; a source without has as many targets."""
        if any(each is not None for each in weights):
            self._weights = [
                own if own is not None else count for own, count in zip(weights, self._targets, strict=True)
            ]
        self._rows = np.array([split.rows for split in splits.values()], np.uint64)
        self.tokens = [int(lengths.sum(dtype=np.int64)) for lengths in self._lengths]
        # By name, so that a source keeps its order when others are added before it.
        self._keys = np.array([key_of(seed, "row", name) for name in splits], np.uint64)
        self._window_key, self._row_key = key_of(seed, "window"), key_of(seed, "rows")
        self._seq_len = seq_len
        self._packing = packing
        self._shared: list[NDArray[np.integer[Any]]] = []
        self._numbers: list[NDArray[np.int64]] = []

    def tell_prefixes(self, shared: Sequence[NDArray[np.integer[Any]]], forest: Forest) -> None:
        """Windows that are planned from now on say which prefix of ``forest`` each sample begins with.

        ``shared``: of every source, the number of each row's prefix in its split.
        """
        self._shared, self._numbers = list(shared), forest.of_source

    def plan(self, place: Place) -> Window:
        """The packed rows of one window. About 0.8 us per sample; safe to call from another thread."""
        source, row = self._draws(place)
        shuffled = self._shuffle(place)
        tokens, targets = (self._gather(columns, source, row) for columns in (self._lengths, self._targets))
        packed = self._pack(tokens[shuffled])
        packed = [packed[each] for each in self._row_order(place, len(packed))]
        order = shuffled[np.fromiter(chain.from_iterable(packed), np.int64, len(source))]
        ends = np.zeros(len(packed) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, packed), np.int64, len(packed)), out=ends[1:])
        prefix, nothing = self._prefixes(source, row)[order], np.zeros(len(source), np.int64)
        weights = None if self._weights is None else self._gather(self._weights, source, row, np.float64)[order]
        return Window(place, ends, source[order], row[order], tokens[order], targets[order], prefix, nothing, weights)

    def count_rows(self, place: Place) -> int:
        """How many packed rows a window has; reads lengths only."""
        if self._packing == "none":
            return place.stop - place.start
        source, row = self._draws(place)
        shuffled = self._shuffle(place)
        tokens = self._gather(self._lengths, source, row)
        return len(self._pack(tokens[shuffled]))

    def tokens_between(self, before: Counts, after: Counts) -> int:
        """Tokens of the draws that lie between two states of the counters."""
        return sum(
            self._source_tokens(source, int(first), int(last))
            for source, (first, last) in enumerate(zip(before, after, strict=True))
        )

    def _draws(self, place: Place) -> tuple[Ints, Ints]:
        """(source, row) of the window's draws, source by source: draw d is element d % n of its pass d // n."""
        before, after = np.array(place.before, np.int64), np.array(place.after, np.int64)
        counts = after - before
        source = np.repeat(np.arange(len(counts)), counts)
        # Position in the window, minus where its source starts in it, plus the source's counter. In the example: the
        # sources start at 0 and 2, so (0 1 2) + (2-0 2-0 1-2) = (2 3 1).
        draw = np.arange(len(source)) + np.repeat(before - (np.cumsum(counts) - counts), counts)
        return source, self._rows_of(source, draw)

    def _shuffle(self, place: Place) -> Ints:
        size = place.stop - place.start
        return permute(np.arange(size), size, keys_of(self._window_key, place.index))

    def _row_order(self, place: Place, rows: int) -> list[int]:
        """The packed rows in an order of chance: the first that are packed get the short samples, so that in the order
        of packing the steps at the end of every window would have the long ones."""
        order: list[int] = permute(np.arange(rows), rows, keys_of(self._row_key, place.index)).tolist()
        return order

    def _rows_of(self, source: Ints, draw: Ints) -> Ints:
        size = self._rows[source]
        number, element = np.divmod(draw.astype(np.uint64), size)
        return permute(element, size, keys_of(self._keys[source], number))

    def _gather(self, columns: Sequence[NDArray[Any]], source: Ints, row: Ints, kind: type = np.int64) -> NDArray[Any]:
        """Element ``row`` of column ``source``, which is sorted, without a copy of the columns."""
        values: NDArray[Any] = np.empty(len(source), kind)
        bounds = [0, *np.cumsum(np.bincount(source, minlength=len(columns))).tolist()]
        for column, (first, last) in zip(columns, pairwise(bounds), strict=True):
            if last > first:
                values[first:last] = column[row[first:last]]
        return values

    def _prefixes(self, source: Ints, row: Ints) -> Ints:
        """Number of each sample's prefix; 0: none, or none was told."""
        if not self._shared:
            return np.zeros(len(source), np.int64)
        return self._gather(self._numbers, source, self._gather(self._shared, source, row))

    def _pack(self, lengths: Ints) -> list[Any]:
        if self._packing == "none":
            return [(sample,) for sample in range(len(lengths))]
        return pack(lengths.tolist(), self._seq_len)

    def _source_tokens(self, source: int, first: int, last: int) -> int:
        size = int(self._rows[source])
        if last - first < size:
            return self._sum(source, first, last)
        # Passes that are used whole need no look at their rows.
        whole = (last // size - first // size) * self.tokens[source]
        return whole + self._sum(source, last // size * size, last) - self._sum(source, first // size * size, first)

    def _sum(self, source: int, first: int, last: int) -> int:
        total = 0
        for start in range(first, last, SUMMED_AT_ONCE):
            draw = np.arange(start, min(start + SUMMED_AT_ONCE, last))
            row = self._rows_of(np.full(len(draw), source), draw)
            total += int(self._lengths[source][row].sum(dtype=np.int64))
        return total
