"""The prepared corpus as it is read: its splits, memory-mapped (``shard_writer`` writes it; docs/data_engine.md).

Each file goes to a temporary name, is flushed to disk and then renamed; MANIFEST.json comes last, so a folder with a
MANIFEST is complete.

What the order of samples needs of every row (its tokens, targets and prefix) stands once more in ``lengths.npy`` of its
split, [3, rows], mapped as it is: opening a corpus reads no shard, and a shard is opened when a row of it is read.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from conf.errors import BadData
from conf.foreign.boundary import reading
from conf.schema.fields import SampleKind
from data_prep.corpus.kinds import KINDS
from data_prep.corpus.manifest import MANIFEST, check_files, check_tokenizer, read_manifest
from data_prep.corpus.row_checks import Expected, check
from data_prep.corpus.shard_file import CURE, Batch, Bytes, Ints, Lengths, Shard, schema, starts

Verify = Literal["sizes", "rows", "hashes"]


@dataclass
class Split:
    """One split of one source, memory-mapped."""

    name: str
    """The source's name."""
    files: tuple[str, ...]
    """Raw files as written in the MANIFEST."""
    shards: list[Shard] = field(repr=False)
    lengths: Lengths = field(repr=False)
    """Tokens per row, [rows]: uint16, uint32 only if a row has 65,536 tokens or more. Mapped, as are the next two."""
    targets: Lengths = field(repr=False)
    """Supervised tokens that have a predecessor, per row, [rows]."""
    shared: Lengths = field(repr=False)
    """Per row the number of its prefix, from 1; 0: none. [rows]."""
    row_weights: npt.NDArray[np.float64] | None = field(default=None, repr=False)
    """Sum of the weights of each row's ``targets``, [rows], mapped; None: every target counts 1."""
    kind: SampleKind = "text"
    digest: str = ""
    """Hashes of the shards, as the MANIFEST states them: another content is another order fingerprint."""
    prefixes: tuple[tuple[int, ...], ...] = ()
    """Token ids that rows may begin with, as the MANIFEST states them."""
    vocab: int = 2**31 - 1
    """Token ids are below it."""

    def __post_init__(self) -> None:
        self._pieces: tuple[list[int], list[Shard | Batch]]
        """Where each begins, and the end of the last; the shards, in place of one that was opened its batches."""
        self._pieces = starts([shard.rows for shard in self.shards]), list(self.shards)

    @property
    def rows(self) -> int:
        return self._pieces[0][-1]

    def check(self) -> None:
        """Read every row; BadData names the row and file that no writer makes."""
        end = 0
        for shard in self.shards:
            start, end = end, end + shard.rows
            self._checked(shard, start)

    def _checked(self, shard: Shard, start: int) -> list[Batch]:
        """The batches of ``shard``, whose first row is ``start``; raises BadData."""
        expected = Expected(self.lengths, self.targets, self.shared, self.vocab, len(self.files), self.prefixes)
        batches = shard.batches()
        for batch in batches:
            check(batch, expected.rows(start, start + shard.rows), shard.path)
        return batches

    def _find(self, row: int) -> tuple[Batch, int]:
        begins, pieces = self._pieces
        if not 0 <= row < begins[-1]:
            raise IndexError(f"row {row} of {self.rows} in {self.name}")
        index = bisect_right(begins, row) - 1
        start, piece = begins[index], pieces[index]
        if isinstance(piece, Batch):
            return piece, row - start
        batches = self._checked(piece, start)  # here too: not every process has checked all of them at its start
        own = [start + batch.start for batch in batches]
        # At once, because threads may read; what two of them open at a time, one of them opens again.
        self._pieces = [*begins[:index], *own, *begins[index + 1 :]], [*pieces[:index], *batches, *pieces[index + 1 :]]
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

    def weights(self, row: int) -> npt.NDArray[np.float32] | None:
        """A view of how much each token of ``row`` counts, float32 [n], 0 where it is no target; None: 1 per target."""
        if self.row_weights is None:
            return None
        batch, at = self._find(row)
        return batch.listed("weights", np.float32, at)

    def extra(self, name: str, row: int) -> Ints:
        """A view of a column that samples of this ``kind`` have, int32; KeyError for one that they have not."""
        batch, at = self._find(row)
        found = batch.listed(name, np.int32, at) if name in KINDS[self.kind].columns else None
        if found is None:
            raise KeyError(f"samples of kind {self.kind} have no column {name}")
        return found

    def parts(self, row: int) -> dict[str, slice]:
        """Where each part of the sample lies among its tokens, by the names of its kind."""
        inner = self.extra("parts", row).tolist() if "parts" in KINDS[self.kind].columns else []
        bounds = [0, *inner, int(self.lengths[row])]
        return {name: slice(*ends) for name, ends in zip(KINDS[self.kind].parts, pairwise(bounds), strict=True)}

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
    def new_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that model.new_tokens has added to the base's tokenizer."""
        return tuple(self.manifest["tokenizer"].get("new_ids", ()))

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
                found[source] = self._open(source, part, entry.get("kind", "text"))
        return found

    def _open(self, source: str, part: dict[str, Any], kind: SampleKind) -> Split:
        columns = schema(kind, weighted="weights" in part)
        shards = [Shard(self.path / shard["file"], shard["rows"], columns) for shard in part["shards"]]
        lengths, targets, shared = _read_lengths(self.path / part["lengths"]["file"], part["rows"])
        files = tuple(entry["path"] for entry in self.manifest["files"][source])
        prefixes = tuple(tuple(ids) for ids in part["prefixes"])
        weights = part.get("weights")
        return Split(
            name=source,
            files=files,
            shards=shards,
            lengths=lengths,
            targets=targets,
            shared=shared,
            row_weights=None if weights is None else _read_weights(self.path / weights["file"], part["rows"]),
            kind=kind,
            digest=" ".join(shard["xxh3"] for shard in part["shards"]),
            prefixes=prefixes,
            vocab=self.manifest["tokenizer"]["vocab_size"],
        )


def _read_lengths(path: Path, rows: int) -> npt.NDArray[Any]:
    """The three columns, [3, rows]; BadData if they are not there."""
    with reading(path, CURE):
        columns = np.load(path, mmap_mode="r")
        if columns.shape != (3, rows) or columns.dtype not in (np.uint16, np.uint32):
            raise ValueError(f"{columns.dtype} {list(columns.shape)}, not uint16 or uint32 [3, {rows}]")
        return np.asarray(columns)  # without numpy's memmap type, which makes every view of it slower


def _read_weights(path: Path, rows: int) -> npt.NDArray[np.float64]:
    """The sums of weights, [rows]; BadData if they are not there."""
    with reading(path, CURE):
        sums = np.load(path, mmap_mode="r")
        if sums.shape != (rows,) or sums.dtype != np.float64:
            raise ValueError(f"{sums.dtype} {list(sums.shape)}, not float64 [{rows}]")
        if not np.isfinite(sums).all() or (sums < 0).any():
            raise ValueError("a sum of weights is no number from 0 on")
        return np.asarray(sums)


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
    check_tokenizer(path, manifest)
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
