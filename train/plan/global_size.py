"""``batch.global_size`` where it is auto: the packed rows of a step, from the corpus and the config alone.

A step aims at TOKENS tokens. A corpus too small for STEPS such steps in a pass gets smaller ones: a model learns little
in a handful of updates, however large they are. Neither the ranks nor their memory matter, so every rank, ``launch``
and ``plan`` find the same number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from conf.errors import ConfigError
from conf.schema import RunConfig, StopConfig
from conf.whole_numbers import ceil_div
from data_prep.corpus.identity import corpus_path
from data_prep.corpus.manifest import MANIFEST
from data_prep.corpus.shards import Split, open_corpus
from data_prep.stream.stream import Stream

TOKENS = 32_768
"""What the shipped Alpaca experiments take: 16 rows of 2,048 tokens, about 128 to 250 samples."""
STEPS = 20
"""At least so many steps in a pass over the corpus, where it has as many rows."""


MOSTLY_EMPTY = 1_000
"""A step with a row in so many is refused."""


@dataclass(frozen=True)
class BatchSize:
    rows: int
    """Packed rows per optimizer step, over all ranks."""
    why: str
    """Completes "batch.global_size=3: "."""


def batch_size(cfg: RunConfig) -> BatchSize:
    """The rows that auto stands for. Without a prepared corpus the most it can become.

    Raises what ``open_corpus`` and ``Stream`` raise: a corpus that is broken, or not of this config.
    """
    path, least = Path(corpus_path(cfg)), cfg.batch.micro_size if cfg.batch.micro_size != "auto" else 1
    if not (path / MANIFEST).is_file():
        rows = max(least, ceil_div(TOKENS, cfg.data.seq_len))
        return BatchSize(rows, f"at most, about {TOKENS:,} tokens; the corpus decides, and it is not prepared yet")
    splits = open_corpus(path, verify="sizes").split("train")
    per_row = cfg.data.seq_len if cfg.data.pack == "exact" else _mean_length(splits)
    wanted = ceil_div(TOKENS, per_row)
    in_a_pass = rows_of_a_pass(cfg, splits, most=wanted * STEPS)
    rows = max(least, min(wanted, in_a_pass // STEPS), 1)
    if in_a_pass >= wanted * STEPS:
        return BatchSize(rows, f"about {rows * per_row:,} tokens")
    steps = ceil_div(in_a_pass, rows)
    return BatchSize(
        rows,
        f"{in_a_pass:,} rows are a pass over the corpus, so it has {steps} steps; steps of {TOKENS:,} tokens, as a "
        f"large corpus gets, would be {ceil_div(in_a_pass, wanted)}",
    )


def size_chosen(asked: RunConfig, settled: RunConfig) -> str:
    """What auto became and why, in one line; empty if ``asked`` names a size. ``settled``: ``asked`` without auto."""
    if asked.batch.global_size != "auto":
        return ""
    found, rows = batch_size(asked), settled.batch.global_size
    return f"batch.global_size={rows}: {found.why if found.rows == rows else 'as when this run began'}"


def refuse_empty_steps(cfg: RunConfig, splits: Mapping[str, Split]) -> None:
    """Raise ConfigError if all rows of the run together would hardly fill one step: the rest of it is empty rows.

    They cost a forward pass each, so that the first step would seem to hang.
    """
    size = cfg.batch.global_size
    if size == "auto" or size < MOSTLY_EMPTY:
        return
    most = size // MOSTLY_EMPTY
    rows = Stream(splits, cfg.data, seed=cfg.seed, global_size=1, max_steps=most + 1).total_steps()
    if rows <= most:
        raise ConfigError(
            f"batch.global_size: {size:,} is more than {MOSTLY_EMPTY:,} times the {rows:,} rows of data.seq_len="
            f"{cfg.data.seq_len} that the whole run has, so its one step would be empty rows; set "
            f"batch.global_size={max(1, rows // STEPS)}, or leave it out"
        )


def rows_of_a_pass(cfg: RunConfig, splits: Mapping[str, Split], *, most: int) -> int:
    """Packed rows of one pass over the corpus, or of the whole run if that is less; counted up to ``most``."""
    stops = (cfg.data.stop, StopConfig(epochs=1.0))
    streams = (
        Stream(splits, replace(cfg.data, stop=stop), seed=cfg.seed, global_size=1, max_steps=most) for stop in stops
    )
    return min(stream.total_steps() for stream in streams)


def _mean_length(splits: Mapping[str, Split]) -> int:
    """Tokens of a sample, rounded up."""
    rows = sum(split.rows for split in splits.values())
    return max(1, ceil_div(sum(int(split.lengths.sum(dtype="int64")) for split in splits.values()), max(1, rows)))
