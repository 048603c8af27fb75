"""Samples to the shards of a prepared corpus (format: ``shards``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from conf.durable import flushed, opened, publish, replacing
from conf.errors import StorageError
from conf.schema.fields import SampleKind
from data_prep.corpus.kinds import check_extras
from data_prep.corpus.manifest import entry_of
from data_prep.corpus.shard_file import BATCH_ROWS, LENGTHS, SCHEMA, SHARD_ROWS, WEIGHTS, Bytes, Ints, Lengths, schema

Floats = npt.NDArray[np.floating[Any]]


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
    weights: Sequence[float] | Floats | None = None
    """How much each token counts, more than 0 exactly where ``loss_mask`` is 1. None: 1 per target."""
    extras: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Further columns, where samples are of another kind than text (data_prep/corpus/kinds.py)."""

    @property
    def targets(self) -> int:
        return int(np.count_nonzero(np.asarray(self.loss_mask)[1:]))

    @property
    def weight(self) -> float:
        """The sum of the weights of its targets, in float64."""
        if self.weights is None:
            return float(self.targets)
        return float(np.asarray(self.weights, np.float32)[1:].sum(dtype=np.float64))


def record_batch(rows: Sequence[Sample], columns_of: Any = SCHEMA) -> Any:
    """Arrow record batch of ``rows`` with the columns of the schema ``columns_of``."""
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
    if "weights" in columns_of.names:
        weights = np.concatenate([_weights(row) for row in rows])
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(weights)))
    for name in columns_of.names[len(columns) :]:
        columns.append(pa.array([list(row.extras[name]) for row in rows], pa.list_(pa.int32())))
    return pa.record_batch(columns, schema=columns_of)


def _weights(row: Sample) -> Floats:
    return np.asarray(row.loss_mask if row.weights is None else row.weights, np.float32)


def _columns(rows: Sequence[Sample]) -> Lengths:
    """What ``lengths.npy`` has of ``rows``, [3, rows], in two bytes each where that holds them."""
    columns = np.array([[len(row.input_ids), row.targets, row.prefix + 1] for row in rows], np.uint32).T
    return columns.astype(np.uint16) if columns.max() <= np.iinfo(np.uint16).max else columns


def _check_weights(sample: Sample, *, weighted: bool) -> None:
    """Raise ValueError for weights that do not fit the mask, or that the split has no column for."""
    if sample.weights is None:
        return
    weights, mask = np.asarray(sample.weights, np.float32), np.asarray(sample.loss_mask)
    if not weighted:
        raise ValueError(f"sample of row {sample.row} has weights, and its split was opened without them")
    if len(weights) != len(mask) or not np.isfinite(weights).all() or not np.array_equal(weights > 0, mask == 1):
        raise ValueError(f"sample of row {sample.row} has weights that are not above 0 exactly at its targets")


class SplitWriter:
    """Writes one split of one source as shards under ``folder``. ``finish()`` gives its entry for the MANIFEST."""

    def __init__(
        self,
        folder: Path,
        root: Path,
        *,
        kind: SampleKind = "text",
        weighted: bool = False,
        shard_rows: int = SHARD_ROWS,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        """``weighted``: the split has a column of weights; needed as soon as one sample has weights."""
        self._folder, self._root = folder, root
        self._kind, self._schema = kind, schema(kind, weighted=weighted)
        self._weights: list[list[float]] | None = [] if weighted else None
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
        _check_weights(sample, weighted=self._weights is not None)
        check_extras(self._kind, len(sample.input_ids), dict(sample.extras))
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
            "lengths": self._save(LENGTHS, np.concatenate(self._lengths, axis=1)) if self._lengths else None,
            "shards": self._shards,
            **({"weights": self._save(WEIGHTS, np.concatenate(self._weights))} if self._weights else {}),
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
                unfinished = self._path.with_suffix(".tmp")
                unfinished.unlink(missing_ok=True)
                self._sink = opened(unfinished, "xb")
                self._writer = pa.ipc.new_stream(self._sink, self._schema)
            self._writer.write_batch(record_batch(self._pending, self._schema))
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror or error}") from error
        self._lengths.append(_columns(self._pending))
        if self._weights is not None:
            self._weights.append([sample.weight for sample in self._pending])
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

    def _save(self, name: str, of_rows: Any) -> dict[str, Any]:
        path = self._folder / name
        try:
            with replacing(path) as stream:
                np.save(stream, of_rows)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
        return self._entry(path)

    def _entry(self, path: Path) -> dict[str, Any]:
        return entry_of(path, self._root)
