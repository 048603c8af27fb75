"""Finished blocks -> quarantine.jsonl and shards: duplicates, the bad-row budget, and the MANIFEST's entry."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep import files
from data_prep.block import Counts, Job, block_file, quarantine_line, read_outcome
from data_prep.conversation import Rejected
from data_prep.shards import Sample, SplitWriter


@dataclass
class Merged:
    """One source, between its blocks and its shards."""

    job: Job
    blocks: int
    left_out: int = 0
    """Rows of the files that ``select`` passed over."""
    counts: Counts = field(default_factory=Counts)
    duplicates: set[int] = field(default_factory=set)
    """Places, among the kept rows of all blocks in order, of rows that repeat an earlier one."""
    duplicate_lines: list[dict[str, Any]] = field(default_factory=list)

    def quarantine(self) -> Iterator[dict[str, Any]]:
        """Lines of quarantine.jsonl in order of file and row, read from the blocks as they are asked for."""
        files_at = {path: place for place, path in enumerate(self.job.paths)}
        blocks = (read_outcome(block_file(self.job.folder, index)).quarantine for index in range(self.blocks))
        return heapq.merge(
            (line for block in blocks for line in block),
            self.duplicate_lines,
            key=lambda line: (files_at[line["file"]], line["row"]),
        )


def collect(job: Job, blocks: int, left_out: int) -> Merged:
    """Counts of all blocks of a source, with the exact duplicates found among them."""
    merged = Merged(job, blocks, left_out)
    for index in range(blocks):
        merged.counts.add(read_outcome(block_file(job.folder, index)).counts)
    if blocks:
        _find_duplicates(merged)
    return merged


def _arrays(job: Job, index: int, *names: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(block_file(job.folder, index).with_suffix(".npz")) as content:
        return {name: content[name] for name in names}


def _find_duplicates(merged: Merged) -> None:
    parts = [_arrays(merged.job, index, "key", "source_file", "row") for index in range(merged.blocks)]
    key, file, row = (np.concatenate([part[name] for part in parts]) for name in ("key", "source_file", "row"))
    # 64-bit keys: among a million rows, two different ones collide with probability 3e-8.
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[group] != np.arange(len(group)))
    if not len(repeated):
        return
    merged.counts.found["duplicate"] = len(repeated)
    if merged.job.switches["duplicate"]:
        original = first[group[repeated]]
        merged.counts.rejected["duplicate"] = len(repeated)
        merged.duplicates = set(repeated.tolist())
        copies = zip(file[repeated].tolist(), row[repeated].tolist(), strict=True)
        kept = zip(file[original].tolist(), row[original].tolist(), strict=True)
        _quarantine_duplicates(merged, dict(zip(copies, kept, strict=True)))


def _quarantine_duplicates(merged: Merged, where: dict[tuple[int, int], tuple[int, int]]) -> None:
    """The blocks do not keep the text of rows, so the files with duplicates are read once more."""
    job = merged.job
    for file in sorted({file for file, _ in where}):
        for raw in files.rows(Path(job.paths[file]).expanduser()):
            if (file, raw.row) in where:
                other, row = where[file, raw.row]
                rejected = Rejected("duplicate", f"the same as row {row} of {job.paths[other]}")
                merged.duplicate_lines.append(quarantine_line(job.source, job.paths[file], raw.row, raw.text, rejected))


def write_quarantine(path: Path, sources: list[Merged]) -> None:
    """quarantine.jsonl of all sources, in order of source, file and row."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        for merged in sources:
            for line in merged.quarantine():
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
            if place not in merged.duplicates:
                file, index = int(block["source_file"][row]), int(block["row"][row])
                yield (
                    Sample(block["ids"][start:end], block["mask"][start:end], file, index, int(block["variant"][row])),
                    bool(block["held_out"][row]),
                )
            place += 1


@dataclass(frozen=True)
class Written:
    entry: dict[str, Any]
    """The source's entry in the MANIFEST."""
    max_tokens: int
    min_vocab: int


def write_shards(merged: Merged, root: Path) -> Written:
    """Write both splits of a source under ``root``; raises StorageError."""
    folder = root / merged.job.source
    writers = {name: SplitWriter(folder / name, root) for name in ("train", "validation")}
    for sample, held_out in samples(merged):
        writers["validation" if held_out else "train"].add(sample)
    counts = merged.counts
    entry = {
        "rows": counts.rows,
        "left_out": merged.left_out,
        "rejected": dict(sorted(counts.rejected.items())),
        "normalised": dict(sorted(counts.normalised.items())),
        "found": dict(sorted(counts.found.items())),
        "truncated": counts.truncated,
        "splits": {name: writer.finish() for name, writer in writers.items()},
    }
    return Written(
        entry, max(each.max_tokens for each in writers.values()), max(each.min_vocab for each in writers.values())
    )
