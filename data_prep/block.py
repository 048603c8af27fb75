"""One block of raw rows -> samples: parse, read, clean, template, tokenise. What a preparation process does.

A block's outcome is two files: arrays (.npz), then counts and quarantine lines (.json). The second is renamed into
place last, so a block whose .json is there is finished and is never done again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from conf.errors import StorageError
from data_prep import chat, decontaminate, dedup, exemplars, files, styles
from data_prep.clean import clean
from data_prep.conversation import Conversation, Rejected, content_key, prompt_key
from data_prep.exemplars import Pools
from data_prep.files import RawRow
from data_prep.selection import Selection
from data_prep.sources import reader
from data_prep.styles import Row, Style
from data_prep.tokenizer import Tokenizer, load

BLOCK_ROWS = 2_048
"""Rows per block. Fixed: the blocks are the same for any number of processes."""
Encoded = tuple[list[int], list[int], int]
"""Token ids, loss mask, variant."""
Kept = tuple[list[int], list[int], int, int, int, Conversation]
"""Encoded, then file, row, and what they were made of."""
SHOWN_CHARACTERS = 100_000
"""Longest row_text in quarantine.jsonl; a longer row is cut there and says so."""


@dataclass(frozen=True)
class Job:
    """What a process needs to know about a source. Plain values, so that it travels between processes."""

    source: str
    paths: tuple[str, ...]
    """Raw inputs as the MANIFEST names them."""
    format: str
    fields: Mapping[str, str]
    template: str
    validation_fraction: float
    seq_len: int
    truncate: bool
    switches: Mapping[str, bool]
    overlap: str | None
    """Folder of the index of evaluation sets, if rows that overlap with them are rejected."""
    near_duplicates: float | None
    tokenizer: str
    """Folder of the corpus's tokenizer."""
    folder: str
    """Where finished blocks go."""
    selection: Selection
    style: Style | None

    @cached_property
    def places(self) -> frozenset[str]:
        """Fields of a conversation that come to stand in samples."""
        return self.style.places if self.style else frozenset()

    @property
    def exemplars(self) -> Path:
        """The pools of a few-shot source."""
        return Path(self.folder) / "exemplars.jsonl"


@dataclass(frozen=True)
class Block:
    index: int
    rows: list[tuple[int, RawRow]]
    """(index of the raw file, row)."""


@dataclass
class Counts:
    """What happened to the rows of a block or a source."""

    rows: int = 0
    truncated: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    normalised: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    """Rows in which a cleaning rule found something, whether it acts or not."""

    def add(self, other: Counts) -> None:
        self.rows += other.rows
        self.truncated += other.truncated
        for name in ("rejected", "normalised", "found"):
            getattr(self, name).update(getattr(other, name))


@dataclass(frozen=True)
class Outcome:
    """A finished block, as read back from disk."""

    counts: Counts
    quarantine: list[dict[str, Any]]


def block_file(folder: str, index: int) -> Path:
    """The .json of block ``index``; its arrays are beside it with .npz."""
    return Path(folder) / f"{index:06d}.json"


def read_outcome(path: Path) -> Outcome:
    content = json.loads(path.read_text())
    counts = content["counts"]
    counters = {name: Counter(counts[name]) for name in ("rejected", "normalised", "found")}
    return Outcome(Counts(counts["rows"], counts["truncated"], **counters), content["quarantine"])


def quarantine_line(source: str, path: str, row: int, text: str, rejected: Rejected) -> dict[str, Any]:
    """A line of quarantine.jsonl."""
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if len(shown) > SHOWN_CHARACTERS:
        shown = f"{shown[:SHOWN_CHARACTERS]}... ({len(shown):,} characters)"
    line = {"source": source, "file": path, "row": row, "reason": rejected.reason, "row_text": shown}
    return line | ({"detail": rejected.detail} if rejected.detail else {})


def is_held_out(conversation: Conversation, fraction: float) -> bool:
    """Whether the prompt's hash falls into the first ``fraction`` of all hashes."""
    return prompt_key(conversation) < int(fraction * 2**64)


def conversation_of(text: str, job: Job, counts: Counts) -> Conversation:
    """Parse, read and clean one row, count what the rules found, look for evaluation text; raises Rejected."""
    row = files.parse(text)
    job.selection.check(row)
    conversation = reader(job.format, job.fields)(row)
    # What no sample shows is no reason to reject one: an example of a whole task, which only some template sets use.
    used = {name: text for name, text in conversation.fields.items() if name in job.places}
    conversation = replace(conversation, fields=used)
    cleaned = clean(conversation, job.switches)
    counts.found.update(cleaned.found)
    if cleaned.rejected is not None:
        raise Rejected(cleaned.rejected)
    counts.normalised.update(cleaned.normalised)
    if job.overlap is not None:
        decontaminate.load(job.overlap).check(cleaned.conversation)
    return cleaned.conversation


def task_of(job: Job, file: int, raw: RawRow) -> str:
    """The task of a row; raises Rejected if it has to be read from the row and is not there."""
    row = files.parse(raw.text) if job.selection.task else {}
    return job.selection.task_of(job.paths[file], row)


def _tokenizer(folder: str) -> Tokenizer:
    return _loaded(folder, *_state(folder))


def _pools(path: str) -> Pools:
    return _read_pools(path, *_state(path))


def _state(path: str) -> tuple[int, int]:
    status = os.stat(path)  # noqa: PTH116
    return status.st_ino, status.st_mtime_ns


@lru_cache(maxsize=1)
def _loaded(folder: str, inode: int, modified_ns: int) -> Tokenizer:
    return load(folder)


@lru_cache(maxsize=1)
def _read_pools(path: str, inode: int, modified_ns: int) -> Pools:
    return exemplars.read(Path(path))


def process(job: Job, block: Block) -> int:
    """Turn a block into its two files; returns its index. Raises StorageError."""
    counts = Counts(rows=len(block.rows))
    kept, quarantine = make(job, block.rows, counts)
    _write(job, block.index, counts, quarantine, kept)
    return block.index


def make(job: Job, rows: Sequence[tuple[int, RawRow]], counts: Counts) -> tuple[list[Kept], list[dict[str, Any]]]:
    """(samples, quarantine lines) of rows (index of the raw file, row); what happened is added to ``counts``."""
    quarantine: list[dict[str, Any]] = []

    def reject(file: int, raw: RawRow, rejected: Rejected) -> None:
        counts.rejected[rejected.reason] += 1
        quarantine.append(quarantine_line(job.source, job.paths[file], raw.row, raw.text, rejected))

    read: list[tuple[int, RawRow, Conversation]] = []
    for file, raw in rows:
        try:
            task_of(job, file, raw)
            read.append((file, raw, conversation_of(raw.text, job, counts)))
        except Rejected as rejected:
            reject(file, raw, rejected)
    kept: list[Kept] = []
    for (file, raw, conversation), outcome in zip(read, _encode(job, read), strict=True):
        fitted = _fit(outcome, job, counts)
        if isinstance(fitted, Rejected):
            reject(file, raw, fitted)
        else:
            kept.append((*fitted, file, raw.row, conversation))
    quarantine.sort(key=lambda line: (job.paths.index(line["file"]), line["row"]))
    return kept, quarantine


def _encode(job: Job, read: Sequence[tuple[int, RawRow, Conversation]]) -> Sequence[Encoded | Rejected]:
    """Token ids, loss mask and variant of each row, in the source's style if it has one."""
    tokenizer = _tokenizer(job.tokenizer)
    if job.style is None:
        outcomes = chat.encode_batch([conversation for *_, conversation in read], job.template, tokenizer)
        return [each if isinstance(each, Rejected) else (*each, 0) for each in outcomes]
    rows = [Row(task_of(job, file, raw), raw.row, conversation) for file, raw, conversation in read]
    pools = _pools(str(job.exemplars)) if job.style.few_shot else {}
    return styles.encode_batch(job.style, rows, pools, job.template, tokenizer, job.seq_len)


def _fit(outcome: Encoded | Rejected, job: Job, counts: Counts) -> Encoded | Rejected:
    """Apply the length policy. A cut answer gets no EOS: it would teach the model to stop in mid-sentence."""
    if isinstance(outcome, Rejected):
        return outcome
    ids, mask, variant = outcome
    if len(ids) <= job.seq_len:
        return outcome
    if not job.truncate:
        return Rejected("over_length", f"{len(ids)} tokens, data.seq_len is {job.seq_len}")
    if not any(mask[1 : job.seq_len]):
        return Rejected("no_supervised_token", f"none among the first {job.seq_len} of {len(ids)} tokens")
    counts.truncated += 1
    return ids[: job.seq_len], mask[: job.seq_len], variant


def _write(
    job: Job,
    index: int,
    counts: Counts,
    quarantine: list[dict[str, Any]],
    kept: Sequence[Kept],
) -> None:
    path = block_file(job.folder, index)
    ids, masks, variant, file, row, conversations = zip(*kept, strict=True) if kept else ((),) * 6
    arrays = {
        "ids": np.array(list(chain.from_iterable(ids)), np.int32),
        "mask": np.array(list(chain.from_iterable(masks)), np.uint8),
        "lengths": np.array([len(each) for each in ids], np.int32),
        "source_file": np.array(file, np.int32),
        "row": np.array(row, np.int64),
        "variant": np.array(variant, np.int16),
        "key": np.array([content_key(each) for each in conversations], np.uint64),
        # By the bare row: every style of it falls on the same side of the split.
        "held_out": np.array([is_held_out(each, job.validation_fraction) for each in conversations], np.bool_),
    }
    if job.near_duplicates is not None:
        arrays["signature"] = dedup.signatures(conversations)
    content = {"counts": vars(counts), "quarantine": quarantine}
    # Another process may be at the same block only after a kill; the name keeps the two apart.
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        temporary.replace(path.with_suffix(".npz"))
        temporary.write_text(json.dumps(content))
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free space there and run again."
        ) from error
