"""Whether the rows of a shard are what a writer writes: every number in them stands within its bounds.

A corpus may come from anywhere, and whoever wrote it can write hashes that fit. A token id beyond the vocabulary or the
number of a file that there is not would end a run in the middle, far from its cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from conf.foreign.boundary import reading
from data_prep.corpus.shard_file import CURE, LENGTHS, Batch, Lengths

Wrong = tuple[npt.NDArray[np.bool_], str]
"""Which rows are wrong, [rows], and what to say of them."""


@dataclass(frozen=True)
class Expected:
    """What the MANIFEST and ``lengths.npy`` say of a shard's rows."""

    tokens: Lengths
    """[rows], as are the next two."""
    targets: Lengths
    shared: Lengths
    vocab: int
    """Token ids are below it."""
    files: int
    """Raw files of the source."""
    prefixes: tuple[tuple[int, ...], ...]

    def rows(self, start: int, end: int) -> Expected:
        """Of rows ``start`` to ``end``."""
        tokens, targets, shared = (each[start:end] for each in (self.tokens, self.targets, self.shared))
        return Expected(tokens, targets, shared, self.vocab, self.files, self.prefixes)


def check(batch: Batch, expected: Expected, path: Path) -> None:
    """Raise BadData about the first row of ``batch`` that is not as ``expected``. Reads every token of it."""
    with reading(path, CURE):  # a record batch may point anywhere
        batch.record.validate(full=True)
        if any(column.null_count for column in batch.record.columns):
            raise ValueError("a column has no value in some row")
    expected = expected.rows(batch.start, batch.start + batch.rows)
    for rule in RULES:
        for rows, what in rule(batch, expected):
            if rows.any():
                raise batch.wrong(rows, what)


def _lengths(batch: Batch, expected: Expected) -> Iterator[Wrong]:
    """A row without a token has no place in a packed row, and a mask of another length would shift every label."""
    sizes = np.diff(batch.bounds)
    yield sizes < 1, "has no tokens"
    other = sizes != expected.tokens
    other |= batch.plain("targets") != expected.targets
    other |= batch.plain("prefix") + 1 != expected.shared
    yield other, f"is not what {LENGTHS} beside it says"


def _tokens(batch: Batch, expected: Expected) -> Iterator[Wrong]:
    begins = batch.bounds[:-1]
    ids, mask = batch.flat("input_ids", np.int32), batch.flat("loss_mask", np.uint8)
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= expected.vocab):
        outside = (ids < 0) | (ids >= expected.vocab)
        yield np.logical_or.reduceat(outside, begins), f"has a token id outside of 0 to {expected.vocab - 1}"
    if len(mask) and int(mask.max()) > 1:
        yield np.logical_or.reduceat(mask > 1, begins), "has a mask of other numbers than 0 and 1"
    # The first token has no predecessor that could predict it.
    found = np.add.reduceat(mask, begins, dtype=np.int64) - mask[begins]
    yield found != batch.plain("targets"), "has another number of targets than its mask says"


def _origin(batch: Batch, expected: Expected) -> Iterator[Wrong]:
    file = batch.plain("file")
    yield (file < 0) | (file >= expected.files), f"comes from a file that is none of the {expected.files} of its source"
    yield batch.plain("row") < 0, "comes from a row below 0"


def _prefixes(batch: Batch, expected: Expected) -> Iterator[Wrong]:
    prefix, length = batch.plain("prefix"), batch.plain("prefix_len")
    known = np.array([*map(len, expected.prefixes), 0], np.int64)  # the last one is for -1: none
    yield (prefix < -1) | (prefix >= len(expected.prefixes)), "begins with a prefix that is not in the MANIFEST"
    yield length != known[prefix], "has a prefix of another length than the MANIFEST says"
    yield length >= np.diff(batch.bounds), "has a prefix as long as itself"
    rows = np.flatnonzero(prefix >= 0)
    sizes = length[rows].astype(np.int64)
    inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    begins = np.cumsum(known) - known
    every = np.fromiter(chain.from_iterable(expected.prefixes), np.int32)
    found = batch.flat("input_ids", np.int32)[np.repeat(batch.bounds[rows], sizes) + inside]
    other = np.zeros(batch.rows, np.bool_)
    np.logical_or.at(other, np.repeat(rows, sizes), found != every[np.repeat(begins[prefix[rows]], sizes) + inside])
    yield other, "does not begin with its prefix"


def _weights(batch: Batch, expected: Expected) -> Iterator[Wrong]:
    if "weights" not in batch.record.schema.names:
        return
    weights, mask = batch.flat("weights", np.float32), batch.flat("loss_mask", np.uint8)
    if len(weights) != len(mask):
        yield np.ones(batch.rows, np.bool_), "has weights of another length than its tokens"
        return
    wrong = ~np.isfinite(weights) | ((weights > 0) != (mask == 1))
    yield np.logical_or.reduceat(wrong, batch.bounds[:-1]), "has weights that are not above 0 exactly at its targets"


RULES: tuple[Callable[[Batch, Expected], Iterator[Wrong]], ...] = (_lengths, _tokens, _origin, _prefixes, _weights)
"""In their order: each may take for granted what those before it have found right."""
