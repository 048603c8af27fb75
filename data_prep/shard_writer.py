"""Samples to the shards of a prepared corpus (format: ``shards``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from conf.errors import StorageError
from data_prep.durable import file_digest, flushed, publish, replacing
from data_prep.shards import BATCH_ROWS, LENGTHS, SHARD_ROWS, Bytes, Ints, Lengths, schema


@dataclass(frozen=True)
class Sample:
    """One row on its way to disk."""

    input_ids: Sequence[int] | Ints
    loss_mask: Sequence[int] | Bytes
    file: int
    row: int
    variant: int = 0
    prefix: int = -1
    """Index of the shared prefix that it begins with; -1: none."""
    prefix_len: int = 0

    @property
    def targets(self) -> int:
        return int(np.count_nonzero(np.asarray(self.loss_mask)[1:]))


def record_batch(rows: Sequence[Sample]) -> Any:
    """Arrow record batch of ``rows``."""
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([len(row.input_ids) for row in rows], out=offsets[1:])
    ids = np.concatenate([np.asarray(row.input_ids, np.int32) for row in rows])
    mask = np.concatenate([np.asarray(row.loss_mask, np.uint8) for row in rows])
    columns = [
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids)),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(mask)),
        pa.array(np.array([row.targets for row in rows], np.int32)),
        pa.array(np.array([row.prefix for row in rows], np.int32)),
        pa.array(np.array([row.prefix_len for row in rows], np.int32)),
        pa.array(np.array([row.file for row in rows], np.int32)),
        pa.array(np.array([row.row for row in rows], np.int64)),
        pa.array(np.array([row.variant for row in rows], np.int16)),
    ]
    return pa.record_batch(columns, schema=schema())


def _columns(rows: Sequence[Sample]) -> Lengths:
    """What ``lengths.npy`` has of ``rows``, [3, rows], in two bytes each where that holds them."""
    columns = np.array([[len(row.input_ids), row.targets, row.prefix + 1] for row in rows], np.uint32).T
    return columns.astype(np.uint16) if columns.max() <= np.iinfo(np.uint16).max else columns


class SplitWriter:
    """Writes one split of one source as shards under ``folder``. ``finish()`` gives its entry for the MANIFEST."""

    def __init__(self, folder: Path, root: Path, *, shard_rows: int = SHARD_ROWS, batch_rows: int = BATCH_ROWS) -> None:
        self._folder, self._root = folder, root
        self._shard_rows, self._batch_rows = shard_rows, batch_rows
        self._pending: list[Sample] = []
        self._shards: list[dict[str, Any]] = []
        self._lengths: list[Lengths] = []
        self._sink: Any = None
        self._writer: Any = None
        self._rows = self._tokens = self._supervised = self._all_tokens = 0
        self.max_tokens = 0
        """Tokens of the longest sample so far."""
        self.min_vocab = 0
        """Largest token id so far, plus one."""

    def add(self, sample: Sample) -> None:
        """Append one sample; raises ValueError for an empty one, or one whose mask has another length."""
        if not len(sample.input_ids) or len(sample.input_ids) != len(sample.loss_mask):
            raise ValueError(f"sample of row {sample.row} is empty or its mask has another length")
        # Copies: a view would keep the whole block it is cut from until this batch is full, and where few rows are held
        # out that is every block of the source.
        ids, mask = np.array(sample.input_ids, np.int32), np.array(sample.loss_mask, np.uint8)
        self._pending.append(replace(sample, input_ids=ids, loss_mask=mask))
        self._supervised += sample.targets
        self.max_tokens = max(self.max_tokens, len(sample.input_ids))
        self.min_vocab = max(self.min_vocab, int(np.max(sample.input_ids)) + 1)
        if len(self._pending) >= self._batch_rows:
            self._flush()

    def finish(self, prefixes: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
        """Close the last shard. Keys: rows, tokens, supervised_tokens, prefixes, lengths (None: no rows), shards."""
        self._flush()
        self._close()
        return {
            "rows": sum(shard["rows"] for shard in self._shards),
            "tokens": self._all_tokens,
            "supervised_tokens": self._supervised,
            "prefixes": [list(ids) for ids in prefixes],
            "lengths": self._write_lengths() if self._lengths else None,
            "shards": self._shards,
        }

    @property
    def _path(self) -> Path:
        return self._folder / f"shard-{len(self._shards):05d}.arrow"

    def _flush(self) -> None:
        if not self._pending:
            return
        try:
            if self._writer is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._sink = self._path.with_suffix(".tmp").open("wb")
                self._writer = pa.ipc.new_stream(self._sink, schema())
            self._writer.write_batch(record_batch(self._pending))
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._lengths.append(_columns(self._pending))
        self._rows += len(self._pending)
        self._tokens += sum(len(sample.input_ids) for sample in self._pending)
        self._pending = []
        if self._rows >= self._shard_rows:
            self._close()

    def _close(self) -> None:
        if self._writer is None:
            return
        path = self._path
        try:
            self._writer.close()
            flushed(self._sink)
            self._sink.close()
            publish(path.with_suffix(".tmp"), path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
        self._shards.append({"rows": self._rows, "tokens": self._tokens} | self._entry(path))
        self._all_tokens += self._tokens
        self._rows = self._tokens = 0
        self._sink = self._writer = None

    def _write_lengths(self) -> dict[str, Any]:
        path = self._folder / LENGTHS
        try:
            with replacing(path) as stream:
                np.save(stream, np.concatenate(self._lengths, axis=1))
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
        return self._entry(path)

    def _entry(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(self._root).as_posix()
        return {"file": name, "bytes": path.stat().st_size, "xxh3": file_digest(path)}
