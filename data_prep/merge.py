"""Finished blocks -> quarantine.jsonl and shards: duplicates out, and the source's entry in the MANIFEST."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_prep import dedup, raw
from data_prep.block import Counts, Job, block_file, quarantine_line, read_outcome
from data_prep.conversation import Rejected
from data_prep.prefixes import find
from data_prep.shard_writer import Sample, SplitWriter


class Finished(Protocol):
    """A source that is ready to be written: merged from its blocks, or found in another corpus (reuse.py)."""

    @property
    def source(self) -> str: ...

    @property
    def rows(self) -> int:
        """Rows that went in."""

    @property
    def left_out(self) -> int:
        """Rows of the files that ``select`` passed over."""

    @property
    def rejected(self) -> Counter[str]: ...

    def quarantine(self) -> Iterator[dict[str, Any]]:
        """Its lines of quarantine.jsonl, in order of file and row."""

    def write(self, root: Path) -> dict[str, Any]:
        """Put both splits under ``root``; the entry in the MANIFEST. Raises StorageError."""


@dataclass
class Merged:
    """One source, between its blocks and its shards."""

    job: Job
    blocks: int
    left_out: int = 0
    """Rows of the files that ``select`` passed over."""
    counts: Counts = field(default_factory=Counts)
    repeats: dict[int, dedup.Repeat] = field(default_factory=dict)
    """Rows that are left out, by place among the kept rows of all blocks in order."""
    repeat_lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def source(self) -> str:
        return self.job.source

    @property
    def rows(self) -> int:
        return self.counts.rows

    @property
    def rejected(self) -> Counter[str]:
        return self.counts.rejected

    def quarantine(self) -> Iterator[dict[str, Any]]:
        """Lines of quarantine.jsonl in order of file and row, read from the blocks as they are asked for."""
        files_at = {path: place for place, path in enumerate(self.job.paths)}
        blocks = (read_outcome(block_file(self.job.folder, index)).quarantine for index in range(self.blocks))
        return heapq.merge(
            (line for block in blocks for line in block),
            self.repeat_lines,
            key=lambda line: (files_at[line["file"]], line["row"]),
        )

    def write(self, root: Path) -> dict[str, Any]:
        """Write both splits of the source under ``root``; raises StorageError."""
        folder = root / self.source
        writers = {name: SplitWriter(folder / name, root) for name in ("train", "validation")}
        train = ((sample.input_ids, sample.loss_mask) for sample, held_out in samples(self) if not held_out)
        prefixes = find(train, seq_len=self.job.seq_len)
        for sample, held_out in samples(self):
            prefix, tokens = prefixes.of(sample.input_ids, sample.loss_mask)
            writers["validation" if held_out else "train"].add(replace(sample, prefix=prefix, prefix_len=tokens))
        counts = self.counts
        return {
            "rows": counts.rows,
            "left_out": self.left_out,
            "rejected": dict(sorted(counts.rejected.items())),
            "normalised": dict(sorted(counts.normalised.items())),
            "found": dict(sorted(counts.found.items())),
            "truncated": counts.truncated,
            "splits": {name: writer.finish(prefixes.ids) for name, writer in writers.items()},
            "max_tokens": max(each.max_tokens for each in writers.values()),
            "min_vocab": max(each.min_vocab for each in writers.values()),
        }


def collect(job: Job, blocks: int, left_out: int) -> Merged:
    """Counts of all blocks of a source, with the duplicates found among them."""
    merged = Merged(job, blocks, left_out)
    for index in range(blocks):
        merged.counts.add(read_outcome(block_file(job.folder, index)).counts)
    if blocks:
        _find_repeats(merged)
    return merged


def _arrays(job: Job, index: int, *names: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(block_file(job.folder, index).with_suffix(".npz")) as content:
        return {name: content[name] for name in names}


def _find_repeats(merged: Merged) -> None:
    job, counts = merged.job, merged.counts
    keys = [_arrays(job, index, "key")["key"] for index in range(merged.blocks)]
    starts = np.cumsum([0, *map(len, keys)])
    exact = dedup.exact(np.concatenate(keys))
    if exact:
        counts.found["duplicate"] = len(exact)
    if job.switches["duplicate"]:
        merged.repeats = exact
    if job.near_duplicates is not None:
        signatures = (_arrays(job, index, "signature")["signature"] for index in range(merged.blocks))
        near = dedup.near(signatures, job.near_duplicates, skip=merged.repeats)
        merged.repeats = merged.repeats | near
    origin = _origins(job, starts, {*merged.repeats, *(each.original for each in merged.repeats.values())})
    _quarantine_repeats(
        merged, {origin[place]: (origin[each.original], each) for place, each in merged.repeats.items()}
    )


def _origins(job: Job, starts: npt.NDArray[np.int64], places: set[int]) -> dict[int, tuple[int, int]]:
    """(file, row) of kept rows by place. ``starts``: the first place of each block, and the end of the last."""
    wanted = np.array(sorted(places), np.int64)
    found: dict[int, tuple[int, int]] = {}
    for index in np.unique(np.searchsorted(starts, wanted, side="right") - 1).tolist():
        block = _arrays(job, index, "source_file", "row")
        first, last = np.searchsorted(wanted, starts[index : index + 2])
        for place in wanted[first:last].tolist():
            at = place - starts[index]
            found[place] = int(block["source_file"][at]), int(block["row"][at])
    return found


def _quarantine_repeats(merged: Merged, where: dict[tuple[int, int], tuple[tuple[int, int], dedup.Repeat]]) -> None:
    """The blocks do not keep the text of rows, so the files with duplicates are read once more."""
    job = merged.job
    for file, wanted in sorted(Counter(file for file, _ in where).items()):
        repeated = (each for each in raw.rows(job.paths[file]) if (file, each.row) in where)
        for each in islice(repeated, wanted):
            (other, row), repeat = where[file, each.row]
            rejected = _rejection(repeat, f"row {row} of {job.paths[other]}")
            merged.counts.rejected[rejected.reason] += 1
            merged.repeat_lines.append(quarantine_line(job.source, job.paths[file], each.row, each.text, rejected))


def _rejection(repeat: dedup.Repeat, original: str) -> Rejected:
    if repeat.is_exact:
        return Rejected("duplicate", f"the same as {original}")
    return Rejected("near_duplicate", f"about {repeat.share:.0%} the same as {original}")


def write_quarantine(path: Path, sources: Iterable[Finished]) -> None:
    """quarantine.jsonl of all sources, in order of source, file and row."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        for source in sources:
            for line in source.quarantine():
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    temporary.replace(path)


def samples(merged: Merged) -> Iterator[tuple[Sample, bool]]:
    """(sample, held out) of all rows that are kept, in order of file and row."""
    place = 0
    for index in range(merged.blocks):
        block = _arrays(merged.job, index, "ids", "mask", "lengths", "source_file", "row", "variant", "held_out")
        ends = np.cumsum(block["lengths"]).tolist()
        for row, end in enumerate(ends):
            start = end - int(block["lengths"][row])
            if place not in merged.repeats:
                origin = (int(block[name][row]) for name in ("source_file", "row", "variant"))
                yield Sample(block["ids"][start:end], block["mask"][start:end], *origin), bool(block["held_out"][row])
            place += 1
