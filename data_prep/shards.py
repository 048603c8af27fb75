"""The prepared corpus on disk: its format and its reader (``shard_writer`` writes it; docs/data_engine.md).

Arrow IPC *stream* files, uncompressed, so that ``datasets.Dataset.from_file`` and a memory map both open them; about
64k rows per shard in record batches of 8,192. Each file goes to a temporary name, is flushed to disk and then renamed;
MANIFEST.json comes last, so a folder with a MANIFEST is complete. Reading is zero-copy: the token arrays are views of
the memory map, made with ``buffers()`` and ``np.frombuffer`` (``to_numpy`` would import pandas).

What the order of samples needs of every row (its tokens, targets and prefix) stands once more in ``lengths.npy`` of its
split, [3, rows], mapped as it is: opening a corpus reads no shard, and a shard is opened when a row of it is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from conf.errors import BadData
from data_prep.manifest import MANIFEST, check_files, read_manifest

LENGTHS = "lengths.npy"
SHARD_ROWS = 65_536
BATCH_ROWS = 8_192

Ints = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]
Lengths = npt.NDArray[np.integer[Any]]
Verify = Literal["sizes", "rows", "hashes"]


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


SCHEMA = schema()


@dataclass(frozen=True)
class _Batch:
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
class _Shard:
    """One file of rows, opened when the first of them is read."""

    path: Path
    rows: int

    def batches(self) -> list[_Batch]:
        try:
            with pa.memory_map(str(self.path)) as source, pa.ipc.open_stream(source) as reader:
                records = list(reader)
                if not reader.schema.equals(SCHEMA):
                    _check_columns(reader.schema)
        except (pa.ArrowInvalid, OSError, KeyError) as error:
            raise BadData(
                f"{self.path} is not a shard of a prepared corpus ({error}); prepare the corpus again."
            ) from error
        *starts, found = _starts([record.num_rows for record in records])
        if found != self.rows:
            raise BadData(f"{self.path} has {found} rows, its MANIFEST says {self.rows}; prepare the corpus again.")
        return [_Batch(self.path, start, record) for start, record in zip(starts, records, strict=True)]

    def check(self, tokens: Lengths, targets: Lengths, shared: Lengths) -> None:
        """Compare every row with what ``lengths.npy`` has of it, each [rows]; raises BadData.

        A row without a token has no place in a packed row, and a mask of another length would shift every label.
        """
        for batch in self.batches():
            rows = slice(batch.start, batch.start + batch.rows)
            sizes = np.diff(batch.bounds)
            if (empty := sizes < 1).any():
                raise batch.wrong(empty, "has no tokens")
            other = sizes != tokens[rows]
            other |= batch.plain("targets") != targets[rows]
            other |= batch.plain("prefix") + 1 != shared[rows]
            if other.any():
                raise batch.wrong(other, f"is not what {LENGTHS} beside it says")


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where each of consecutive pieces begins, and the end of the last."""
    return [0, *np.cumsum(sizes).tolist()]


@dataclass
class Split:
    """One split of one source, memory-mapped."""

    name: str
    """The source's name."""
    files: tuple[str, ...]
    """Raw files as written in the MANIFEST."""
    shards: list[_Shard] = field(repr=False)
    lengths: Lengths = field(repr=False)
    """Tokens per row, [rows]: uint16, uint32 only if a row has 65,536 tokens or more. Mapped, as are the next two."""
    targets: Lengths = field(repr=False)
    """Supervised tokens that have a predecessor, per row, [rows]."""
    shared: Lengths = field(repr=False)
    """Per row the number of its prefix, from 1; 0: none. [rows]."""
    digest: str = ""
    """Hashes of the shards, as the MANIFEST states them: another content is another data plan."""
    prefixes: tuple[tuple[int, ...], ...] = ()
    """Token ids that rows may begin with, as the MANIFEST states them."""

    def __post_init__(self) -> None:
        self._pieces: tuple[list[int], list[_Shard | _Batch]]
        """Where each begins, and the end of the last; the shards, in place of one that was opened its batches."""
        self._pieces = _starts([shard.rows for shard in self.shards]), list(self.shards)

    @property
    def rows(self) -> int:
        return self._pieces[0][-1]

    def check(self) -> None:
        """Read every shard's columns of lengths; BadData names the row and file that no writer makes."""
        end = 0
        for shard in self.shards:
            start, end = end, end + shard.rows
            shard.check(self.lengths[start:end], self.targets[start:end], self.shared[start:end])

    def _find(self, row: int) -> tuple[_Batch, int]:
        starts, pieces = self._pieces
        if not 0 <= row < starts[-1]:
            raise IndexError(f"row {row} of {self.rows} in {self.name}")
        index = bisect_right(starts, row) - 1
        start, piece = starts[index], pieces[index]
        if isinstance(piece, _Batch):
            return piece, row - start
        batches = piece.batches()
        own = [start + batch.start for batch in batches]
        # At once, because threads may read; what two of them open at a time, one of them opens again.
        self._pieces = [*starts[:index], *own, *starts[index + 1 :]], [*pieces[:index], *batches, *pieces[index + 1 :]]
        return self._find(row)

    def tokens(self, row: int) -> tuple[Ints, Bytes]:
        """Views of (input_ids int32 [n], loss_mask uint8 [n]); read-only."""
        ids, mask = self.buffers(row)
        return np.frombuffer(ids, np.int32), np.frombuffer(mask, np.uint8)

    def buffers(self, row: int) -> tuple[memoryview, memoryview]:
        """``tokens`` as bytes, 4 n and n of them."""
        batch, at = self._find(row)
        ids, mask, bounds = batch.buffers
        start, end = bounds[at], bounds[at + 1]
        return ids[4 * start : 4 * end], mask[start:end]

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
        shards = [_Shard(self.path / shard["file"], shard["rows"]) for shard in part["shards"]]
        lengths, targets, shared = _read_lengths(self.path / part["lengths"]["file"], part["rows"])
        files = tuple(entry["path"] for entry in self.manifest["files"][source])
        prefixes = tuple(tuple(ids) for ids in part["prefixes"])
        digest = " ".join(shard["xxh3"] for shard in part["shards"])
        return Split(source, files, shards, lengths, targets, shared, digest, prefixes)


def _read_lengths(path: Path, rows: int) -> npt.NDArray[Any]:
    """The three columns, [3, rows]; BadData if they are not there."""
    try:
        columns = np.load(path, mmap_mode="r")
        if columns.shape != (3, rows) or columns.dtype not in (np.uint16, np.uint32):
            raise ValueError(f"{columns.dtype} {list(columns.shape)}, not uint16 or uint32 [3, {rows}]")
    except (ValueError, OSError) as error:
        raise BadData(f"{path} does not hold the lengths of its rows ({error}); prepare the corpus again.") from error
    return np.asarray(columns)  # without numpy's memmap type, which makes every view of it slower


def _check_columns(found: Any) -> None:
    """KeyError unless every column is there, as the type that the views take it for."""
    for wanted in SCHEMA:
        if found.field(wanted.name).type != wanted.type:
            raise KeyError(f"column {wanted.name} is {found.field(wanted.name).type}, not {wanted.type}")


def open_corpus(path: Path, *, verify: Verify = "hashes", hint: str = "") -> Corpus:
    """Open a finished corpus. ``verify``: compare every file's size with the MANIFEST, or the lengths of all rows as
    well, or also every file's hash.

    ``hint`` is the command to print if there is no corpus. Raises MissingInput (absent or unfinished) and BadData
    (naming the file that is wrong).
    """
    manifest = read_manifest(path, hint=hint)
    _check_vocabulary(path, manifest)
    for source in manifest["sources"].values():
        check_files(path, source, hashes=verify == "hashes")
    corpus = Corpus(path, manifest)
    if verify != "sizes":
        for split in (*corpus.split("train").values(), *corpus.split("validation").values()):
            split.check()
    return corpus


def _check_vocabulary(path: Path, manifest: dict[str, Any]) -> None:
    largest, size = manifest["min_vocab"] - 1, manifest["tokenizer"]["vocab_size"]
    if largest >= size:
        raise BadData(
            f"{path / MANIFEST} says that the largest token id is {largest}, and its tokenizer has ids below {size}: "
            "the samples were made with another tokenizer; prepare the corpus again."
        )
