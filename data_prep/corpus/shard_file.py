"""One file of samples on disk: its columns, and views of them.

Arrow IPC *stream* files, uncompressed, so that ``datasets.Dataset.from_file`` and a memory map both open them; about
64k samples per shard in record batches of 8,192. Reading is zero-copy: the token arrays are views of the memory map,
made with ``buffers()`` and ``np.frombuffer`` (``to_numpy`` would import pandas).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from conf.errors import BadData
from conf.foreign.boundary import reading
from conf.schema.fields import SampleKind
from data_prep.corpus.kinds import KINDS

LENGTHS = "lengths.npy"
WEIGHTS = "weights.npy"
CURE = "prepare the corpus again"
SHARD_ROWS = 65_536
BATCH_ROWS = 8_192

Ints = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Lengths = npt.NDArray[np.integer[Any]]


PLAIN: dict[str, type] = {
    "targets": np.int32,
    "prefix": np.int32,
    "prefix_len": np.int32,
    "file": np.int32,
    "row": np.int64,
    "variant": np.int16,
}
"""Columns of one number per row."""


def schema(kind: SampleKind = "text", *, weighted: bool = False) -> Any:
    """Columns of a shard. ``targets`` is loss_mask[1:].sum(): a first token has no predecessor that predicts it.

    ``weighted``: a column ``weights`` says how much each target counts; without it each counts 1. Samples of another
    ``kind`` than text have further columns (data_prep/corpus/kinds.py).
    """
    return pa.schema(
        [
            ("input_ids", pa.list_(pa.int32())),
            ("loss_mask", pa.list_(pa.uint8())),
            *((name, pa.from_numpy_dtype(plain)) for name, plain in PLAIN.items()),
            *([("weights", pa.list_(pa.float32()))] if weighted else []),
            *((name, pa.list_(pa.int32())) for name in KINDS[kind].columns),
        ]
    )


SCHEMA = schema()


@dataclass(frozen=True)
class Batch:
    """One record batch in the memory map. Its views are made when a row of it is first read: opening needs few."""

    path: Path
    start: int
    """Its first row, of the shard."""
    record: Any

    @property
    def rows(self) -> int:
        return int(self.record.num_rows)

    @cached_property
    def bounds(self) -> Ints:
        """Where each row begins in the tokens and masks of all, [rows + 1]; BadData if not at the same places."""
        ids, mask = self._offsets("input_ids"), self._offsets("loss_mask")
        if not np.array_equal(ids, mask):
            raise self.wrong(np.diff(ids) != np.diff(mask), "has a mask of another length than its tokens")
        return ids

    @cached_property
    def buffers(self) -> tuple[memoryview, memoryview, memoryview]:
        """Tokens and masks of all rows as bytes, and ``bounds``: memoryviews, which cost less to slice than arrays."""
        ids, mask = (self.record.column(name).buffers()[3] for name in ("input_ids", "loss_mask"))
        return memoryview(ids), memoryview(mask), self.bounds.data

    def listed(self, name: str, kind: type, row: int) -> npt.NDArray[Any] | None:
        """The list in column ``name`` of ``row``, as a view; None where the shard has no such column."""
        if name not in self.record.schema.names:
            return None
        offsets = self._offsets(name)
        return np.frombuffer(self.record.column(name).buffers()[3], kind)[offsets[row] : offsets[row + 1]]

    def flat(self, name: str, kind: type) -> npt.NDArray[Any]:
        """The values of all rows in the list column ``name``, as a view; row i has those of ``bounds`` i to i + 1."""
        values: npt.NDArray[Any] = np.frombuffer(self.record.column(name).buffers()[3], kind)
        return values[: self._offsets(name)[-1]]

    @cached_property
    def numbers(self) -> dict[str, npt.NDArray[Any]]:
        """The columns of one number per row."""
        return {name: self.plain(name) for name in PLAIN}

    def plain(self, name: str) -> npt.NDArray[Any]:
        column = self.record.column(name)
        return np.frombuffer(column.buffers()[1], PLAIN[name])[column.offset : column.offset + self.rows]

    def wrong(self, rows: npt.NDArray[np.bool_], what: str) -> BadData:
        """What to raise about the first of ``rows``."""
        return BadData(f"row {self.start + int(rows.argmax())} of {self.path} {what}; prepare the corpus again.")

    def _offsets(self, name: str) -> Ints:
        column = self.record.column(name)
        return np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + self.rows + 1]


@dataclass(frozen=True)
class Shard:
    """One file of rows, opened when the first of them is read."""

    path: Path
    rows: int
    columns: Any
    """The Arrow schema that the MANIFEST says it has."""

    def batches(self) -> list[Batch]:
        with (
            reading(self.path, CURE),
            pa.memory_map(str(self.path)) as source,
            pa.ipc.open_stream(source) as reader,
        ):
            records = list(reader)
            if not reader.schema.equals(self.columns):
                _check_columns(reader.schema, self.columns)
        *begins, found = starts([record.num_rows for record in records])
        if found != self.rows:
            raise BadData(f"{self.path} has {found} rows, its MANIFEST says {self.rows}; prepare the corpus again.")
        return [Batch(self.path, start, record) for start, record in zip(begins, records, strict=True)]


def starts(sizes: Sequence[int]) -> list[int]:
    """Where each of consecutive pieces begins, and the end of the last."""
    return [0, *np.cumsum(sizes).tolist()]


def _check_columns(found: Any, columns: Any) -> None:
    """KeyError unless every column is there, as the type that the views take it for."""
    for wanted in columns:
        if found.field(wanted.name).type != wanted.type:
            raise KeyError(f"column {wanted.name} is {found.field(wanted.name).type}, not {wanted.type}")
