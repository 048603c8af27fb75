"""One block of records -> samples: runs the stages of a source. This is what a preparation process does.

The outcome of a block is two files: arrays (.npz), then counts and quarantine lines (.json). The .json is renamed into
place last, so a block whose .json exists is finished and is never done again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from conf.durable import beside, opened, write_whole
from conf.errors import StorageError
from data_prep.filters import dedup
from data_prep.rows.conversation import Rejected, content_key, prompt_key
from data_prep.rows.record import Record, writable
from data_prep.rows.stage import COUNTERS, Counts, apply
from data_prep.samples.draft import Sample
from data_prep.stages import Stages

BLOCK_ROWS = 2_048
"""Records per block. Fixed: the blocks are the same for any number of processes."""
BLOCK_FORMAT = 2
"""Blocks of another format, which an earlier release left unfinished, are made again."""
SHOWN_CHARACTERS = 100_000
"""Longest row_text in quarantine.jsonl; a longer text is cut there and says so."""


@dataclass(frozen=True)
class Job:
    """One source to prepare. Plain values, so that it travels between processes."""

    source: str
    paths: tuple[str, ...]
    """Raw files as the MANIFEST names them."""
    folder: str
    """Where finished blocks go."""
    stages: Stages
    encoding: str | None = None
    """Of its text files; None: UTF-8, or what a byte order mark says."""


@dataclass(frozen=True)
class Block:
    index: int
    records: list[Record]


@dataclass(frozen=True)
class Outcome:
    """A finished block, as read back from disk."""

    counts: Counts
    quarantine: list[dict[str, Any]]


def block_file(folder: str, index: int) -> Path:
    """The .json of block ``index``; its arrays are beside it with .npz."""
    return Path(folder) / f"{index:06d}.json"


def read_outcome(path: Path) -> Outcome:
    content = json.loads(path.read_text(encoding="utf-8"))
    counts = content["counts"]
    counters: dict[str, Any] = {name: Counter(counts[name]) for name in COUNTERS}
    plain: dict[str, Any] = {name: counts[name] for name in ("rows", "truncated", "split")}
    return Outcome(Counts(**plain, **counters), content["quarantine"])


def quarantine_line(source: str, record: Record, rejected: Rejected) -> dict[str, Any]:
    """A line of quarantine.jsonl."""
    shown = writable(record.text)
    if len(shown) > SHOWN_CHARACTERS:
        shown = f"{shown[:SHOWN_CHARACTERS]}... ({len(shown):,} characters)"
    line = {"source": source, "file": record.file, "row": record.row, "reason": rejected.reason, "row_text": shown}
    return line | ({"detail": writable(rejected.detail)} if rejected.detail else {})


def samples_of(job: Job, records: Sequence[Record], counts: Counts) -> tuple[list[Sample], list[dict[str, Any]]]:
    """(samples, quarantine lines) of records, in order; what happened is added to ``counts``."""
    stages = (*job.stages.reading, *job.stages.writing)
    samples: list[Sample] = []
    quarantine: list[dict[str, Any]] = []
    before = -1
    for place, outcome in apply(stages, records, counts):
        counts.split += place == before
        before = place
        if isinstance(outcome, Rejected):
            counts.rejected[outcome.reason] += 1
            quarantine.append(quarantine_line(job.source, records[place], outcome))
        else:
            samples.append(outcome)
    return samples, quarantine


def process(job: Job, block: Block) -> int:
    """Turn a block into its two files; returns its index. Raises StorageError."""
    counts = Counts(rows=len(block.records))
    samples, quarantine = samples_of(job, block.records, counts)
    _write(job, block.index, counts, quarantine, samples)
    return block.index


def _write(
    job: Job,
    index: int,
    counts: Counts,
    quarantine: list[dict[str, Any]],
    samples: Sequence[Sample],
) -> None:
    path = block_file(job.folder, index)
    encoded = [each.tokens for each in samples]
    records = [each.record for each in samples]
    conversations = [each.conversation for each in records]
    file_at = {path: place for place, path in enumerate(job.paths)}
    arrays = {
        "ids": np.array(list(chain.from_iterable(each.ids for each in encoded)), np.int32),
        "mask": np.array(list(chain.from_iterable(each.mask for each in encoded)), np.uint8),
        "lengths": np.array([len(each.ids) for each in encoded], np.int32),
        "source_file": np.array([file_at[each.file] for each in records], np.int32),
        "row": np.array([each.row for each in records], np.int64),
        "variant": np.array([each.variant for each in encoded], np.int16),
        "key": np.array([content_key(each) for each in conversations], np.uint64),
        # Of the conversation as it was read: every style of it falls on the same side of the split.
        "prompt": np.array([prompt_key(each) for each in conversations], np.uint64),
    }
    if any(each.weights is not None for each in encoded):
        weights = (each.mask if each.weights is None else each.weights for each in encoded)
        arrays["weights"] = np.array(list(chain.from_iterable(weights)), np.float32)
    if job.stages.repeats.near is not None:
        arrays["signature"] = dedup.signatures(conversations)
    content = {"counts": vars(counts), "quarantine": quarantine}
    # Another process may be at the same block only after a kill; the name keeps the two apart.
    temporary = beside(path)
    try:
        with opened(temporary, "xb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        temporary.replace(path.with_suffix(".npz"))
        write_whole(path, json.dumps(content))
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free space there and run again."
        ) from error
