"""A prepared corpus for other trainers: maps and an iterator of rows as dicts, with the names Hugging Face uses.

    torch     DataLoader(PackedView(stream, splits), batch_sampler=...), or any loop over RankSteps(stream, splits)
    HF        Trainer(train_dataset=PackedView(stream, splits), ...), or SampleView(split) without packing
    Grain     grain.MapDataset.source(PackedView(stream, splits))

A row is ``{"input_ids", "labels", "position_ids"}``, int64 [tokens] each: ``labels[i]`` is the token at i, or -100
where nothing is learnt (HF's models shift them); positions restart at 0 with every sample, which is what keeps the
samples of a row apart in attention kernels that look at them. Rows are as long as their samples: padding is the
collator's choice. Where a source has weights, every row has ``weights`` too, float32 [tokens]: how much each label
counts, 0 where there is none. A trainer that takes no weights trains on something else then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.errors import ConfigError
from data_prep.corpus.shards import Split
from data_prep.stream.stream import PackedRow, Stream, rank_rows
from data_prep.stream.windows import Window

IGNORE = -100

KEPT_WINDOWS = 4
"""Planned windows that a PackedView keeps: neighbours for a loader that reads a little out of order."""

NAMES = ("input_ids", "labels", "position_ids")
Row = dict[str, NDArray[Any]]


def row_arrays(packed: PackedRow, splits: Sequence[Split]) -> Row:
    """The samples of one packed row, one after another; ``splits`` in the order of ``Stream.names``."""
    (row,) = rows_arrays([packed], splits)
    return row


def rows_arrays(rows: Sequence[PackedRow], splits: Sequence[Split]) -> list[Row]:
    """``row_arrays`` of each of ``rows``, as views of arrays of them all.

    Once for all rows and not once per sample or row: numpy's calls would cost more than what they copy. Pieces are
    joined as bytes for the same reason, in bytearrays where the arrays are handed out, because those can be written to.
    """
    pieces = [splits[source].buffers(row) for packed in rows for source, row in packed.samples]
    weighted = any(split.row_weights is not None for split in splits)
    if not pieces:
        nothing: Row = {name: np.zeros(0, np.int64) for name in NAMES}
        return [nothing | ({"weights": np.zeros(0, np.float32)} if weighted else {}) for _ in rows]
    ids = np.frombuffer(b"".join([ids for ids, _ in pieces]), np.int32).astype(np.int64)
    lengths = [len(mask) for _, mask in pieces]
    starts = np.cumsum([0, *lengths])
    learnt = np.frombuffer(bytearray().join([mask for _, mask in pieces]), np.bool_)
    learnt[starts[:-1]] = False  # the token before the first of a sample is another sample's
    counting = np.arange(max(lengths)).data.cast("B")
    positions = np.frombuffer(bytearray().join([counting[: 8 * length] for length in lengths]), np.int64)
    labels = np.where(learnt, ids, IGNORE)
    ends = starts[np.cumsum([0, *(len(packed.samples) for packed in rows)])].tolist()
    columns: Row = {"input_ids": ids, "labels": labels, "position_ids": positions}
    if weighted:
        columns["weights"] = _weights(rows, splits, learnt)
    return [{name: column[start:end] for name, column in columns.items()} for start, end in pairwise(ends)]


def _weights(rows: Sequence[PackedRow], splits: Sequence[Split], learnt: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How much each label of ``rows`` counts: what its source says, 1 in a source without weights."""
    found = learnt.astype(np.float32)
    at = 0
    for source, row in (sample for packed in rows for sample in packed.samples):
        length, weights = int(splits[source].lengths[row]), splits[source].weights(row)
        if weights is not None:
            found[at : at + length] *= weights
        at += length
    return found


def labels_of(ids: NDArray[np.int32], mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The tokens of one sample that are learnt; the first never is."""
    labels = np.where(mask != 0, ids, IGNORE).astype(np.int64)
    labels[0] = IGNORE
    return labels


def _check_whole(stream: Stream) -> None:
    if stream.shares:
        raise ConfigError(
            "data.share_prefix: true makes rows hold more than other trainers can take, which compute every sample "
            "whole; make the stream with data.share_prefix=false"
        )


class SampleView:
    """One split of one source as a map: ``view[i]`` is sample i, alone in its row, in the order of the corpus."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return self._split.rows

    def __getitem__(self, row: int) -> Row:
        return row_arrays(PackedRow(((0, int(row)),)), [self._split])


class PackedView:
    """The packed rows of a whole run as a map: ``view[i]`` is global row i, as Corral's own training would read it.

    ``stream`` is one that has not begun and shares no prefixes (else ConfigError). Making the view packs the lengths of
    the whole run once (about 1 s per million samples). The rows are shuffled and mixed already: read them in order, or
    at least block by block, because a row costs the plan of its window (a few milliseconds) unless that window was
    among the last few.
    """

    def __init__(self, stream: Stream, splits: Mapping[str, Split]) -> None:
        _check_whole(stream)
        self._splits = [splits[name] for name in stream.names]
        self._planner, self._places = stream.planner, list(stream.places())
        self._ends = list(accumulate(self._planner.count_rows(place) for place in self._places))
        self._recent: dict[int, Window] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        number = bisect_right(self._ends, int(row))
        first = self._ends[number - 1] if number else 0
        (packed,) = self._window(number).packed(int(row) - first, int(row) - first + 1)
        return row_arrays(packed, self._splits)

    def _window(self, number: int) -> Window:
        if number not in self._recent:
            if len(self._recent) == KEPT_WINDOWS:
                self._recent.pop(next(iter(self._recent)))
            self._recent[number] = self._planner.plan(self._places[number])
        return self._recent[number]


class RankSteps:
    """An iterator of steps: of each, the rows of one rank, packed and mixed as Corral's own training reads them.

    A step is a list of ceil(global_size / world) rows; those beyond the end of the data have no tokens. Every rank
    gets equally many steps. ``stream.state_dict()`` is of the last step that was handed out, and fits any number of
    ranks. A loop that waits for a device does well to call ``stream.look_ahead()`` before it does.
    """

    def __init__(self, stream: Stream, splits: Mapping[str, Split], *, rank: int = 0, world: int = 1) -> None:
        _check_whole(stream)
        self.stream = stream
        self._splits = [splits[name] for name in stream.names]
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        return self.stream.total_steps()

    def __iter__(self) -> Iterator[list[Row]]:
        for step in self.stream:
            yield rows_arrays(rank_rows(step, self._rank, self._world), self._splits)
