"""The prepared corpus on disk: its format and its reader (``shard_writer`` writes it; "A prepared corpus" in docs).

Arrow IPC *stream* files, uncompressed, so that ``datasets.Dataset.from_file`` and a memory map both open them; about
64k rows per shard in record batches of 8,192. Each file goes to a temporary name, is flushed to disk and then renamed;
MANIFEST.json comes last, so a folder with a MANIFEST is complete. Reading is zero-copy: the token arrays are views of
the memory map, made with ``buffers()`` and ``np.frombuffer`` (``to_numpy`` would import pandas).
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from conf.errors import BadData, MissingInput
from data_prep.durable import file_digest

VERSION = 1
MANIFEST = "MANIFEST.json"
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


def schema() -> Any:
    """Columns of a shard. ``targets`` is loss_mask[1:].sum(): a first token has no predecessor that predicts it."""
    return pa.schema(
        [
            ("input_ids", pa.list_(pa.int32())),
            ("loss_mask", pa.list_(pa.uint8())),
            *((name, pa.from_numpy_dtype(kind)) for name, kind in PLAIN.items()),
        ]
    )


@dataclass(frozen=True)
class _Batch:
    """One record batch in the memory map. Its views are made when a row of it is first read: opening needs few."""

    record: Any

    @property
    def rows(self) -> int:
        return int(self.record.num_rows)

    @cached_property
    def ids(self) -> tuple[Ints, Ints]:
        """Tokens of all rows, and where each row begins in them (one more than rows)."""
        return np.frombuffer(self._buffer("input_ids", 3), np.int32), self.offsets("input_ids")

    @cached_property
    def mask(self) -> tuple[Bytes, Ints]:
        return np.frombuffer(self._buffer("loss_mask", 3), np.uint8), self.offsets("loss_mask")

    @cached_property
    def numbers(self) -> dict[str, npt.NDArray[Any]]:
        """The columns of one number per row."""
        return {name: self.plain(name) for name in PLAIN}

    def offsets(self, name: str) -> Ints:
        start = self.record.column(name).offset
        return np.frombuffer(self._buffer(name, 1), np.int32)[start : start + self.rows + 1]

    def plain(self, name: str) -> npt.NDArray[Any]:
        start = self.record.column(name).offset
        return np.frombuffer(self._buffer(name, 1), PLAIN[name])[start : start + self.rows]

    def _buffer(self, name: str, number: int) -> Any:
        """A buffer of a column: 1 the values, or the offsets of a list column, whose values are 3."""
        return self.record.column(name).buffers()[number]


def _narrow(batches: Sequence[_Batch], column: Callable[[_Batch], Ints]) -> Lengths:
    """A column of all batches in two bytes per row where that holds it: all that a rank keeps of every row.

    Filled in place, because freed copies of every batch would stay on the heap between the views that are kept.
    """
    whole = np.empty(sum(batch.rows for batch in batches), np.uint16)
    start = 0
    for batch in batches:
        part = column(batch)
        if part.max(initial=0) > np.iinfo(np.uint16).max:
            return np.concatenate([column(each) for each in batches])
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


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
    prefixes: tuple[tuple[int, ...], ...] = ()
    """Token ids that rows may begin with, as the MANIFEST states them."""

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *np.cumsum([batch.rows for batch in self.batches]).tolist()]

    @property
    def rows(self) -> int:
        return self._starts[-1]

    @cached_property
    def lengths(self) -> Lengths:
        """Tokens per row, [rows]: uint16, int32 only if a row has 65,536 tokens or more."""
        return _narrow(self.batches, lambda batch: np.diff(batch.offsets("input_ids")))

    @cached_property
    def targets(self) -> Lengths:
        """Supervised tokens that have a predecessor, per row, [rows]: uint16 or int32."""
        return _narrow(self.batches, lambda batch: batch.plain("targets"))

    @cached_property
    def shared(self) -> Lengths:
        """Per row the number of its prefix, from 1; 0: none. Unsigned [rows]; costs nothing where there is none."""
        if not self.prefixes:
            return np.broadcast_to(np.uint8(0), self.rows)
        kind = np.uint8 if len(self.prefixes) <= np.iinfo(np.uint8).max else np.int32
        return np.concatenate([(batch.plain("prefix") + 1).astype(kind) for batch in self.batches])

    def _find(self, row: int) -> tuple[_Batch, int]:
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows} in {self.name}")
        index = bisect_right(self._starts, row) - 1
        return self.batches[index], row - self._starts[index]

    def tokens(self, row: int) -> tuple[Ints, Bytes]:
        """Views of (input_ids int32 [n], loss_mask uint8 [n]); read-only."""
        batch, at = self._find(row)
        (ids, ids_at), (mask, mask_at) = batch.ids, batch.mask
        return ids[ids_at[at] : ids_at[at + 1]], mask[mask_at[at] : mask_at[at + 1]]

    def origin(self, row: int) -> tuple[str, int, int]:
        """(raw file, row in it, variant)."""
        batch, at = self._find(row)
        columns = batch.numbers
        return self.files[columns["file"][at]], int(columns["row"][at]), int(columns["variant"][at])

    def uid(self, row: int) -> int:
        """64-bit hash of (source, file, row, variant): the same in every corpus prepared from the same files."""
        path, index, variant = self.origin(row)
        return xxhash.xxh3_64_intdigest(f"{self.name}\0{path}\0{index}\0{variant}".encode())

    def prefix(self, row: int) -> tuple[int, int]:
        """(index into ``prefixes``, or -1; its tokens, with which this row starts, or 0)."""
        batch, at = self._find(row)
        return int(batch.numbers["prefix"][at]), int(batch.numbers["prefix_len"][at])


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
        prefixes = tuple(tuple(ids) for ids in part["prefixes"])
        return Split(source, files, batches, " ".join(shard["xxh3"] for shard in part["shards"]), prefixes)


def _read_shard(path: Path, rows: int) -> list[_Batch]:
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            batches = [_Batch(record) for record in reader]
            _check_columns(reader.schema)
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise BadData(f"{path} is not a shard of a prepared corpus ({error}); prepare the corpus again.") from error
    found = sum(batch.rows for batch in batches)
    _check_rows(path, batches)
    if found != rows:
        raise BadData(f"{path} has {found} rows, its MANIFEST says {rows}; prepare the corpus again.")
    return batches


def _check_rows(path: Path, batches: list[_Batch]) -> None:
    """A row without a token has no place in a packed row, and a mask of another length would shift every label."""
    before = 0
    for batch in batches:
        ids_at, mask_at = batch.offsets("input_ids"), batch.offsets("loss_mask")
        empty = ids_at[1:] <= ids_at[:-1]
        if empty.any():
            raise BadData(f"row {before + int(empty.argmax())} of {path} has no tokens; prepare the corpus again.")
        if not np.array_equal(ids_at, mask_at) and not np.array_equal(np.diff(ids_at), np.diff(mask_at)):
            row = before + int((np.diff(ids_at) != np.diff(mask_at)).argmax())
            raise BadData(
                f"row {row} of {path} has a mask of another length than its tokens; prepare the corpus again."
            )
        before += batch.rows


def _check_columns(found: Any) -> None:
    """KeyError unless every column is there, as the type that the views take it for."""
    for wanted in schema():
        if found.field(wanted.name).type != wanted.type:
            raise KeyError(f"column {wanted.name} is {found.field(wanted.name).type}, not {wanted.type}")


def read_manifest(path: Path, *, hint: str = "") -> dict[str, Any]:
    """MANIFEST.json of the corpus at ``path``; MissingInput if it is absent or unfinished, BadData if it is broken."""
    command = hint or f"python -m data_prep data=NAME data.prepared={path}"
    if not path.is_dir():
        raise MissingInput(f"no prepared corpus at {path} (data.prepared); prepare it with: {command}")
    if not (path / MANIFEST).is_file():
        raise MissingInput(f"the corpus at {path} is unfinished (no {MANIFEST}); finish it with: {command}")
    return parse_manifest((path / MANIFEST).read_text(), str(path / MANIFEST))


def parse_manifest(text: str, where: str) -> dict[str, Any]:
    """The MANIFEST read from ``where``; BadData if it is not one, or of another version."""
    try:
        manifest = json.loads(text)
        version = manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{where} is not a corpus manifest ({error}); prepare the corpus again.") from error
    if version != VERSION:
        raise BadData(f"{where} has version {version}, this Corral reads {VERSION}; prepare the corpus again.")
    return dict(manifest)


def open_corpus(path: Path, *, verify: Literal["sizes", "hashes"] = "hashes", hint: str = "") -> Corpus:
    """Open a finished corpus. ``verify``: compare every shard's size, or also its hash, with the MANIFEST.

    ``hint`` is the command to print if there is no corpus. Raises MissingInput (absent or unfinished) and BadData
    (naming the file whose size or hash is wrong).
    """
    manifest = read_manifest(path, hint=hint)
    _check_vocabulary(path, manifest)
    for source in manifest["sources"].values():
        check_shards(path, source, hashes=verify == "hashes")
    return Corpus(path, manifest)


def _check_vocabulary(path: Path, manifest: dict[str, Any]) -> None:
    largest, size = manifest["min_vocab"] - 1, manifest["tokenizer"]["vocab_size"]
    if largest >= size:
        raise BadData(
            f"{path / MANIFEST} says that the largest token id is {largest}, and its tokenizer has ids below {size}: "
            "the samples were made with another tokenizer; prepare the corpus again."
        )


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
