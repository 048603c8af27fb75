"""The prepared corpus on disk: writer and reader (format: "A prepared corpus" in docs).

Arrow IPC *stream* files, uncompressed, so that ``datasets.Dataset.from_file`` and a memory map both open them; about
64k rows per shard in record batches of 8,192. Each file goes to a temporary name, is flushed to disk and then renamed;
MANIFEST.json comes last, so a folder with a MANIFEST is complete. Reading is zero-copy: the token arrays are views of
the memory map, made with ``buffers()`` and ``np.frombuffer`` (``to_numpy`` would import pandas).
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from conf.errors import BadData, MissingInput, StorageError
from data_prep.durable import file_digest, publish

VERSION = 1
MANIFEST = "MANIFEST.json"
SHARD_ROWS = 65_536
BATCH_ROWS = 8_192

Ints = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]


def schema() -> Any:
    """Columns of a shard. ``targets`` is loss_mask[1:].sum(): a first token has no predecessor that predicts it."""
    return pa.schema(
        [
            ("input_ids", pa.list_(pa.int32())),
            ("loss_mask", pa.list_(pa.uint8())),
            ("targets", pa.int32()),
            ("prefix", pa.int32()),
            ("prefix_len", pa.int32()),
            ("file", pa.int32()),
            ("row", pa.int64()),
            ("variant", pa.int16()),
        ]
    )


@dataclass(frozen=True)
class Sample:
    """One row on its way to disk."""

    input_ids: Sequence[int] | Ints
    loss_mask: Sequence[int] | Bytes
    file: int
    row: int
    variant: int = 0

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
        pa.array(np.full(len(rows), -1, np.int32)),
        pa.array(np.zeros(len(rows), np.int32)),
        pa.array(np.array([row.file for row in rows], np.int32)),
        pa.array(np.array([row.row for row in rows], np.int64)),
        pa.array(np.array([row.variant for row in rows], np.int16)),
    ]
    return pa.record_batch(columns, schema=schema())


class SplitWriter:
    """Writes one split of one source as shards under ``folder``. ``finish()`` gives its entry for the MANIFEST."""

    def __init__(self, folder: Path, root: Path, *, shard_rows: int = SHARD_ROWS, batch_rows: int = BATCH_ROWS) -> None:
        self._folder, self._root = folder, root
        self._shard_rows, self._batch_rows = shard_rows, batch_rows
        self._pending: list[Sample] = []
        self._shards: list[dict[str, Any]] = []
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
        self._pending.append(sample)
        self._supervised += sample.targets
        self.max_tokens = max(self.max_tokens, len(sample.input_ids))
        self.min_vocab = max(self.min_vocab, int(np.max(sample.input_ids)) + 1)
        if len(self._pending) >= self._batch_rows:
            self._flush()

    def finish(self) -> dict[str, Any]:
        """Close the last shard. Keys: rows, tokens, supervised_tokens, prefixes, shards."""
        self._flush()
        self._close()
        return {
            "rows": sum(shard["rows"] for shard in self._shards),
            "tokens": self._all_tokens,
            "supervised_tokens": self._supervised,
            "prefixes": [],
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
        self._rows += len(self._pending)
        self._tokens += sum(len(sample.input_ids) for sample in self._pending)
        self._pending = []
        if self._rows >= self._shard_rows:
            self._close()

    def _close(self) -> None:
        if self._writer is None:
            return
        path = self._path
        temporary = path.with_suffix(".tmp")
        try:
            self._writer.close()
            self._sink.flush()
            os.fsync(self._sink.fileno())
            self._sink.close()
            publish(temporary, path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
        name = path.relative_to(self._root).as_posix()
        entry = {"file": name, "rows": self._rows, "tokens": self._tokens}
        self._shards.append({**entry, "bytes": path.stat().st_size, "xxh3": file_digest(path)})
        self._all_tokens += self._tokens
        self._rows = self._tokens = 0
        self._sink = self._writer = None


@dataclass(frozen=True)
class _Batch:
    """Views of one record batch in the memory map."""

    ids: Ints
    mask: Bytes
    ids_at: Ints
    """Offsets of the rows in ``ids``, one more than rows."""
    mask_at: Ints
    columns: dict[str, npt.NDArray[Any]]


def _plain(column: Any, dtype: type) -> npt.NDArray[Any]:
    return np.frombuffer(column.buffers()[1], dtype)[column.offset : column.offset + len(column)]


def _list(column: Any, dtype: type) -> tuple[npt.NDArray[Any], Ints]:
    _, offsets, _, values = column.buffers()
    at = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(values, dtype), at


def _view(batch: Any) -> _Batch:
    ids, ids_at = _list(batch.column("input_ids"), np.int32)
    mask, mask_at = _list(batch.column("loss_mask"), np.uint8)
    kinds: dict[str, type] = {"targets": np.int32, "prefix": np.int32, "prefix_len": np.int32}
    kinds |= {"file": np.int32, "row": np.int64, "variant": np.int16}
    return _Batch(ids, mask, ids_at, mask_at, {name: _plain(batch.column(name), kind) for name, kind in kinds.items()})


@dataclass
class Split:
    """One split of one source, memory-mapped."""

    name: str
    """The source's name."""
    files: tuple[str, ...]
    """Raw files as written in the MANIFEST."""
    batches: list[_Batch] = field(repr=False)
    digest: str = ""
    """Hashes of the shards, as the MANIFEST states them: another content is another data plan."""

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *np.cumsum([len(batch.ids_at) - 1 for batch in self.batches]).tolist()]

    @property
    def rows(self) -> int:
        return self._starts[-1]

    @cached_property
    def lengths(self) -> Ints:
        """Tokens per row, int32 [rows]."""
        return np.concatenate([np.diff(batch.ids_at) for batch in self.batches]).astype(np.int32, copy=False)

    @cached_property
    def targets(self) -> Ints:
        """Supervised tokens that have a predecessor, per row, int32 [rows]."""
        return np.concatenate([batch.columns["targets"] for batch in self.batches])

    def _find(self, row: int) -> tuple[_Batch, int]:
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows} in {self.name}")
        index = bisect_right(self._starts, row) - 1
        return self.batches[index], row - self._starts[index]

    def tokens(self, row: int) -> tuple[Ints, Bytes]:
        """Views of (input_ids int32 [n], loss_mask uint8 [n]); read-only."""
        batch, at = self._find(row)
        ids = batch.ids[batch.ids_at[at] : batch.ids_at[at + 1]]
        return ids, batch.mask[batch.mask_at[at] : batch.mask_at[at + 1]]

    def origin(self, row: int) -> tuple[str, int, int]:
        """(raw file, row in it, variant)."""
        batch, at = self._find(row)
        columns = batch.columns
        return self.files[columns["file"][at]], int(columns["row"][at]), int(columns["variant"][at])

    def uid(self, row: int) -> int:
        """64-bit hash of (source, file, row, variant): the same in every corpus prepared from the same files."""
        path, index, variant = self.origin(row)
        return xxhash.xxh3_64_intdigest(f"{self.name}\0{path}\0{index}\0{variant}".encode())

    def prefix(self, row: int) -> tuple[int, int]:
        """(index into the MANIFEST's prefixes, or -1; tokens of it that this row starts with)."""
        batch, at = self._find(row)
        return int(batch.columns["prefix"][at]), int(batch.columns["prefix_len"][at])


@dataclass(frozen=True)
class Corpus:
    path: Path
    manifest: dict[str, Any]

    @property
    def tokenizer_fingerprint(self) -> str:
        return str(self.manifest["tokenizer"]["fingerprint"])

    @property
    def templates(self) -> dict[str, str]:
        """Template of each source."""
        return dict(self.manifest["template"])

    def split(self, name: Literal["train", "validation"]) -> dict[str, Split]:
        """The sources that have rows in this split, ordered by name."""
        found = {}
        for source, entry in sorted(self.manifest["sources"].items()):
            part = entry["splits"].get(name)
            if part and part["rows"]:
                found[source] = self._open(source, part)
        return found

    def _open(self, source: str, part: dict[str, Any]) -> Split:
        batches = [batch for shard in part["shards"] for batch in _read_shard(self.path / shard["file"], shard["rows"])]
        files = tuple(entry["path"] for entry in self.manifest["files"][source])
        return Split(source, files, batches, digest=" ".join(shard["xxh3"] for shard in part["shards"]))


def _read_shard(path: Path, rows: int) -> list[_Batch]:
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            batches = [_view(batch) for batch in reader]
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise BadData(f"{path} is not a shard of a prepared corpus ({error}); prepare the corpus again.") from error
    found = sum(len(batch.ids_at) - 1 for batch in batches)
    if found != rows:
        raise BadData(f"{path} has {found} rows, its MANIFEST says {rows}; prepare the corpus again.")
    return batches


def read_manifest(path: Path, *, hint: str = "") -> dict[str, Any]:
    """MANIFEST.json of the corpus at ``path``; MissingInput if it is absent or unfinished, BadData if it is broken."""
    command = hint or f"python -m data_prep data=NAME data.prepared={path}"
    if not path.is_dir():
        raise MissingInput(f"no prepared corpus at {path} (data.prepared); prepare it with: {command}")
    if not (path / MANIFEST).is_file():
        raise MissingInput(f"the corpus at {path} is unfinished (no {MANIFEST}); finish it with: {command}")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        version = manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{path / MANIFEST} is not a corpus manifest ({error}); prepare the corpus again.") from error
    if version != VERSION:
        raise BadData(
            f"{path / MANIFEST} has version {version}, this Corral reads {VERSION}; prepare the corpus again."
        )
    return dict(manifest)


def open_corpus(path: Path, *, verify: Literal["sizes", "hashes"] = "hashes", hint: str = "") -> Corpus:
    """Open a finished corpus. ``verify``: compare every shard's size, or also its hash, with the MANIFEST.

    ``hint`` is the command to print if there is no corpus. Raises MissingInput (absent or unfinished) and BadData
    (naming the file whose size or hash is wrong).
    """
    manifest = read_manifest(path, hint=hint)
    for source in manifest["sources"].values():
        check_shards(path, source, hashes=verify == "hashes")
    return Corpus(path, manifest)


def check_shards(path: Path, source: Mapping[str, Any], *, hashes: bool) -> None:
    """Compare the shards of one source of the corpus at ``path`` with its MANIFEST entry; raises BadData."""
    for part in source["splits"].values():
        for shard in part["shards"]:
            _check(path / shard["file"], shard, hashes=hashes)


def _check(path: Path, shard: dict[str, Any], *, hashes: bool) -> None:
    if not path.is_file():
        raise BadData(f"{path} is missing from the corpus; restore it, or prepare the corpus again.")
    size = path.stat().st_size
    if size != shard["bytes"]:
        raise BadData(f"{path} has {size} bytes, its MANIFEST says {shard['bytes']}; prepare the corpus again.")
    if hashes and file_digest(path) != shard["xxh3"]:
        raise BadData(f"{path} is damaged: its hash is not the one in the MANIFEST; prepare the corpus again.")
