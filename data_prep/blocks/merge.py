"""Finished blocks -> quarantine.jsonl and shards: duplicates out, and the source's entry in the MANIFEST."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from conf.durable import replacing
from conf.safety.secrets import redact_text
from data_prep.blocks.process import Job, block_file, quarantine_line, read_outcome
from data_prep.corpus.prefixes import find
from data_prep.corpus.shard_writer import Sample, SplitWriter
from data_prep.filters import dedup
from data_prep.rows import raw
from data_prep.rows.conversation import Rejected
from data_prep.rows.stage import Counts


class Finished(Protocol):
    """A source that is ready to be written: merged from its blocks, or taken from another corpus (reuse.py)."""

    @property
    def source(self) -> str: ...

    @property
    def rows(self) -> int:
        """Records that went in."""

    @property
    def left_out(self) -> int:
        """Rows of the files that ``select`` does not choose."""

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
    """Rows of the files that ``select`` does not choose."""
    counts: Counts = field(default_factory=Counts)
    repeats: dict[int, dedup.Repeat] = field(default_factory=dict)
    """Repeats that are left out, by place among the samples of all blocks in order."""
    repeat_lines: list[dict[str, Any]] = field(default_factory=list)
    bound: int = 0
    """Prompts with a smaller hash are held out."""
    raised_by: int = 0
    """Rows that are held out beyond ``validation_fraction``, because it alone would leave too few."""

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
        weighted = any(_has_weights(self.job, index) for index in range(self.blocks))
        writers = {name: SplitWriter(folder / name, root, weighted=weighted) for name in ("train", "validation")}
        train = ((sample.input_ids, sample.loss_mask) for sample, held_out in samples(self) if not held_out)
        prefixes = find(train)
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
            **({"unread": dict(sorted(counts.unread.items()))} if counts.unread else {}),
            **({"split": counts.split} if counts.split else {}),
            **({"floor": self.raised_by} if self.raised_by else {}),
            "splits": {name: writer.finish(prefixes.ids) for name, writer in writers.items()},
            "max_tokens": max(each.max_tokens for each in writers.values()),
            "min_vocab": max(each.min_vocab for each in writers.values()),
        }


def collect(job: Job, blocks: int, left_out: int) -> Merged:
    """Counts of all blocks of a source, and the duplicates among their samples."""
    merged = Merged(job, blocks, left_out)
    for index in range(blocks):
        merged.counts.add(read_outcome(block_file(job.folder, index)).counts)
    if blocks:
        _find_repeats(merged)
        _hold_out(merged)
    return merged


def _hold_out(merged: Merged) -> None:
    """Set the bound of the split: higher for a small source that would hold out too few rows.

    Not for a source with a style: its exemplars were drawn from what the fraction leaves, and its files may stand in
    other sources too, where the same prompts must be held out.
    """
    split = merged.job.stages.split
    if split.validation is not None:
        return  # whole files are held out, and no other row
    merged.bound = split.bound
    if merged.job.stages.render.style is not None:
        return
    prompts = np.concatenate([_arrays(merged.job, index, "prompt")["prompt"] for index in range(merged.blocks)])
    leaders = _leaders(merged.job, merged.blocks)
    first = leaders == np.arange(len(leaders))  # a row counts once, however many samples it makes
    first[list(merged.repeats)] = False
    kept = prompts[first]
    merged.bound = split.raised(kept)
    merged.raised_by = int(np.count_nonzero(kept < merged.bound) - np.count_nonzero(kept < split.bound))


def _arrays(job: Job, index: int, *names: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(block_file(job.folder, index).with_suffix(".npz")) as content:
        return {name: content[name] for name in names}


def _has_weights(job: Job, index: int) -> bool:
    """Whether some target of the block counts other than 1."""
    with np.load(block_file(job.folder, index).with_suffix(".npz")) as content:
        return "weights" in content.files


def _find_repeats(merged: Merged) -> None:
    job, counts = merged.job, merged.counts
    keys = [_arrays(job, index, "key")["key"] for index in range(merged.blocks)]
    starts = np.cumsum([0, *map(len, keys)])
    leaders = _leaders(job, merged.blocks)
    followers = leaders != np.arange(len(leaders))
    spoilt = _held_out_prompts(merged)
    exact = dedup.exact(np.concatenate(keys), skip=followers)
    exact = {place: each for place, each in exact.items() if place not in spoilt}
    if exact:
        counts.found["duplicate"] = len(exact)
    merged.repeats = spoilt | (exact if job.stages.repeats.exact else {})
    threshold = job.stages.repeats.near
    if threshold is not None:
        signatures = (_arrays(job, index, "signature")["signature"] for index in range(merged.blocks))
        near = dedup.near(signatures, threshold, skip={*merged.repeats, *np.flatnonzero(followers).tolist()})
        merged.repeats = merged.repeats | near
    for place in np.flatnonzero(followers).tolist():  # samples of one record stay or go together
        if (repeat := merged.repeats.get(int(leaders[place]))) is not None:
            merged.repeats[place] = repeat
    origin = _origins(job, starts, {*merged.repeats, *(each.original for each in merged.repeats.values())})
    _quarantine_repeats(
        merged, {origin[place]: (origin[each.original], each) for place, each in merged.repeats.items()}
    )


def _leaders(job: Job, blocks: int) -> npt.NDArray[np.int64]:
    """For every sample, the place of the first sample of its record [samples]."""
    parts = [_arrays(job, index, "source_file", "row") for index in range(blocks)]
    file, row = (np.concatenate([part[name] for part in parts]) for name in ("source_file", "row"))
    first = np.ones(len(row), np.bool_)
    first[1:] = (file[1:] != file[:-1]) | (row[1:] != row[:-1])
    leaders: npt.NDArray[np.int64] = np.maximum.accumulate(np.where(first, np.arange(len(row)), 0))
    return leaders


def _held_out_prompts(merged: Merged) -> dict[int, dedup.Repeat]:
    """Training rows whose prompt stands in a file that ``validation`` names."""
    if not merged.job.stages.split.files:
        return {}  # a split by the hash of the prompt keeps equal prompts together
    blocks = [_arrays(merged.job, index, "prompt", "source_file") for index in range(merged.blocks)]
    prompts, files = (np.concatenate([each[name] for each in blocks]) for name in ("prompt", "source_file"))
    return dedup.held_out_prompts(prompts, np.isin(files, list(_held_out_files(merged.job))))


def _held_out_files(job: Job) -> set[int]:
    """Places of the files that ``validation`` names among the source's files."""
    return {place for place, path in enumerate(job.paths) if path in job.stages.split.files}


def _origins(job: Job, starts: npt.NDArray[np.int64], places: set[int]) -> dict[int, tuple[int, int]]:
    """(file, row) of samples by place. ``starts``: the first place of each block, and the end of the last."""
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
    """Add the lines of quarantine. Blocks do not keep the text of records, so files with duplicates are read again."""
    job = merged.job
    for file, wanted in sorted(Counter(file for file, _ in where).items()):
        repeated = (each for each in raw.rows(job.paths[file], job.encoding) if (file, each.row) in where)
        for each in islice(repeated, wanted):
            (other, row), repeat = where[file, each.row]
            rejected = _rejection(repeat, f"row {row} of {job.paths[other]}")
            merged.counts.rejected[rejected.reason] += 1
            merged.repeat_lines.append(quarantine_line(job.source, each, rejected))


def _rejection(repeat: dedup.Repeat, original: str) -> Rejected:
    if repeat.is_exact:
        return Rejected("duplicate", f"the same as {original}")
    if repeat.held_out:
        return Rejected("held_out_prompt", f"{original} has the same prompt and is held out")
    return Rejected("near_duplicate", f"about {repeat.share:.0%} the same as {original}")


def write_quarantine(path: Path, sources: Iterable[Finished]) -> None:
    """quarantine.jsonl of all sources, in order of source, file and row; the rows are as their files have them."""
    named = cache(redact_text)
    with replacing(path) as stream:
        for source in sources:
            for line in source.quarantine():
                shown = {**line, "file": named(line["file"])}
                stream.write(f"{json.dumps(shown, ensure_ascii=False)}\n".encode())


def samples(merged: Merged) -> Iterator[tuple[Sample, bool]]:
    """(sample, held out) of all samples that are kept, in order of file and row."""
    place, whole_files = 0, _held_out_files(merged.job)
    for index in range(merged.blocks):
        names = ("ids", "mask", "lengths", "source_file", "row", "variant", "prompt")
        block = _arrays(merged.job, index, *names, *(["weights"] if _has_weights(merged.job, index) else []))
        weights = block.get("weights")
        ends = np.cumsum(block["lengths"]).tolist()
        for row, end in enumerate(ends):
            start = end - int(block["lengths"][row])
            if place not in merged.repeats:
                file, number, variant = (int(block[name][row]) for name in ("source_file", "row", "variant"))
                own = None if weights is None else weights[start:end]
                sample = Sample(block["ids"][start:end], block["mask"][start:end], file, number, variant, weights=own)
                yield sample, file in whole_files or int(block["prompt"][row]) < merged.bound
            place += 1
