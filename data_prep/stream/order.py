"""What the order of the samples depends on, in plain values: compared on resume, hashed into the order fingerprint.

The number of ranks and ``batch.global_size`` are not in it: the state counts rows, so a run may go on with others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import xxhash

from conf.errors import BadData, ConfigError
from conf.schema import DataConfig
from conf.whole_numbers import ceil_div
from data_prep.stream.mixture import SHARES
from data_prep.stream.windows import Rows

ALGORITHM = 2
"""Raised whenever the same settings would give another order of samples."""

HASHED_AT_ONCE = 1 << 18
"""Rows that are widened to int32 at once: the digest must not depend on how narrow a split keeps them."""

SHOWN = 8
"""Differences named in one message."""


def window_size(data: DataConfig, rows: int, tokens: int) -> int:
    """Samples per window. auto: the power of two from 256 * seq_len / mean length on, within 4096..65536.

    A window then has at least 256 packed rows, of which only the last is not full: at most 0.2% is padding.
    """
    if data.window != "auto":
        return data.window
    wanted = ceil_div(256 * data.seq_len * rows, tokens)
    return min(65536, max(4096, 1 << (wanted - 1).bit_length()))


def check_lengths(splits: Mapping[str, Rows], seq_len: int) -> None:
    """ConfigError if a sample is longer than a row, BadData if one is empty."""
    for name, split in splits.items():
        longest, shortest = int(split.lengths.argmax()), int(split.lengths.argmin())
        if split.lengths[longest] > seq_len:
            raise ConfigError(
                f"data.seq_len: {seq_len}, but row {longest} of source {name} was prepared with "
                f"{split.lengths[longest]} tokens and is never cut silently; prepare the corpus again with this "
                f"seq_len, or set data.seq_len={split.lengths[longest]} or more"
            )
        if split.lengths[shortest] < 1:
            raise BadData(f"row {shortest} of source {name} has no tokens; prepare the corpus again")


def describe(
    splits: Mapping[str, Rows],
    data: DataConfig,
    *,
    seed: int,
    window: int,
    shares: Sequence[int],
    limits: Sequence[int | None],
) -> dict[str, Any]:
    """Setting -> value, JSON-able. ``data.sources`` has [rows, hash of the data, share, draws at most] by name."""
    return {
        "algorithm": ALGORITHM,
        "seed": seed,
        "data.seq_len": data.seq_len,
        "data.window": window,
        "data.pack": data.pack,
        "data.unit": data.unit,
        "data.stop": {key: value for key, value in asdict(data.stop).items() if value is not None},
        "data.sources": {
            name: [split.rows, _hash_of(split), share, limit]
            for (name, split), share, limit in zip(splits.items(), shares, limits, strict=True)
        },
    }


def fingerprint(description: Mapping[str, Any]) -> str:
    """32 hex digits over ``describe``'s values."""
    return hashlib.blake2b(json.dumps(description).encode(), digest_size=16).hexdigest()


def same_window(before: Mapping[str, Any], now: Mapping[str, Any], drawn: Sequence[str]) -> bool:
    """Whether given draws of the sources ``drawn`` come out as the same window under both descriptions."""
    keys = ("algorithm", "seed", "data.seq_len", "data.pack")
    old, new = before["data.sources"], now["data.sources"]
    return (
        all(before[key] == now[key] for key in keys)
        and [name for name in new if name in drawn] == list(drawn)
        and all(old[name][:2] == new[name][:2] for name in drawn)
    )


def order_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase per setting or source that is not the same; empty if the order of samples is the same."""
    found = [
        f"{key}: {before[key]} in the checkpoint, {now[key]} now"
        for key in now
        if key != "data.sources" and before[key] != now[key]
    ]
    old, new = before["data.sources"], now["data.sources"]
    found += [f"source {name}: in the checkpoint, not now" for name in old if name not in new]
    found += [f"source {name}: not in the checkpoint" for name in new if name not in old]
    for name in new:
        if name in old and old[name] != new[name]:
            found.append(f"source {name}: {_source_change(old[name], new[name])}")
    if not found and list(old) != list(new):
        found.append("data.sources: in another order")
    return found


def summary(found: Sequence[str]) -> str:
    """The phrases of ``order_changes`` in one line, cut after a few."""
    rest = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + rest


def _source_change(old: Sequence[Any], new: Sequence[Any]) -> str:
    phrases = []
    if old[0] != new[0]:
        phrases.append(f"{old[0]} rows in the checkpoint, {new[0]} now")
    elif old[1] != new[1]:
        phrases.append("other content than in the checkpoint")
    if old[2] != new[2]:
        phrases.append(f"share of draws {old[2] / SHARES:.6f} in the checkpoint, {new[2] / SHARES:.6f} now")
    if old[3] != new[3]:
        phrases.append(f"retires after {old[3]} draws in the checkpoint, {new[3]} now")
    return ", ".join(phrases)


def _hash_of(split: Rows) -> str:
    """16 hex digits over the hash of its files; over the lengths and targets where the split knows no such hash."""
    known = str(getattr(split, "digest", ""))
    if known:  # a corpus: its hashes stand for all that is in it, and 15 million rows need not be read to say the same
        return xxhash.xxh3_64_hexdigest(known.encode())
    digest = xxhash.xxh3_64()
    for column in (split.lengths, split.targets):
        for start in range(0, len(column), HASHED_AT_ONCE):
            digest.update(np.ascontiguousarray(column[start : start + HASHED_AT_ONCE], "<i4").data)
    return digest.hexdigest()
