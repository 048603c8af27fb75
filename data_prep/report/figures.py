"""What preparation did, in numbers: rows in and out by reason, lengths, supervised share, mixture, packing, longest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from conf.schema import RunConfig
from data_prep.corpus.shards import Corpus, Split
from data_prep.filters.clean import RULES
from data_prep.stream.stream import Stream
from data_prep.templates import folding

PERCENTILES = (50, 90, 99, 99.9)
BARS = 24
"""Bars of a length histogram."""
PACKED_SAMPLES = 200_000
"""Packing efficiency is measured on so many samples of the stream; it does not change beyond."""
ROWS_AT_ONCE = 128
SAMPLES = 10
WHY = {rule.name: rule.why for rule in RULES} | {
    "duplicate": "the same as an earlier row of its source",
    "near_duplicate": "its three-word runs are nearly those of an earlier row of its source",
    "contaminated": "it overlaps with a row of an evaluation set",
    "over_length": "longer than data.seq_len",
    **folding.WHY,
    "number_as_text": "a field that holds text has a number; it is written as JSON spells it",
    "boolean_as_text": "a field that holds text has true or false; it is written as JSON spells it",
    "null_system_turn": "a system turn whose text is null is no turn",
    "null_argument": "an argument of a tool call that is null is none (tables write so; as JSON text it would stay)",
    "held_out_prompt": "its prompt stands in a held-out row, so that training on it would spoil the evaluation",
}
DUPLICATES = "Duplicates are looked for within each source: a row that stands in two sources stays in both."


def build(cfg: RunConfig, corpus: Corpus) -> dict[str, Any]:
    """The whole report as a JSON-able mapping."""
    train, validation = corpus.split("train"), corpus.split("validation")
    clean = corpus.manifest["config"]["data"]["clean"]
    report: dict[str, Any] = {
        "corpus": str(corpus.path),
        "preparation": json.loads((corpus.path / "preparation.json").read_text(encoding="utf-8")),
        "tokenizer": corpus.manifest["tokenizer"],
        "seq_len": corpus.manifest["seq_len"],
        "sources": {
            name: _source(entry, clean) | {"template": corpus.templates[name], "lengths": _lengths(train.get(name))}
            for name, entry in corpus.manifest["sources"].items()
        },
        "packing": _packing(cfg, train),
        "longest": _longest(train),
        "held_out": {name: split.rows for name, split in validation.items()},
        "duplicates": DUPLICATES,
        "notes": corpus.manifest.get("notes", {}),
        "evaluation_files": corpus.manifest.get("evaluation_files", []),
        "samples": [_origin(train[name], row) for name, row in chosen(train)],
    }
    return report


def _source(entry: dict[str, Any], clean: dict[str, bool]) -> dict[str, Any]:
    splits = entry["splits"]
    tokens = sum(part["tokens"] for part in splits.values())
    supervised = sum(part["supervised_tokens"] for part in splits.values())
    keys = ("rows", "rejected", "normalised", "found", "truncated")
    return {
        **{key: entry[key] for key in keys},
        "unread": entry.get("unread", {}),
        "split": entry.get("split", 0),
        "left_out": entry.get("left_out", 0),
        "floor": entry.get("floor", 0),
        "flagged": {rule: count for rule, count in entry["found"].items() if not clean.get(rule, True)},
        "kept": {name: part["rows"] for name, part in splits.items()},
        "tokens": tokens,
        "supervised_share": supervised / tokens if tokens else 0.0,
    }


def _lengths(split: Split | None) -> dict[str, Any]:
    """Percentiles and histogram of the training rows' lengths, in tokens."""
    if split is None:
        return {}
    lengths: npt.NDArray[np.int64] = split.lengths.astype(np.int64)
    counts, edges = np.histogram(lengths, bins=BARS, range=(0, int(np.percentile(lengths, 99.9)) + 1))
    shown = {f"p{each:g}": int(np.percentile(lengths, each)) for each in PERCENTILES}
    return {
        "mean": float(lengths.mean()),
        "max": int(lengths.max()),
        **shown,
        "histogram": {"counts": counts.tolist(), "edges": [round(edge, 1) for edge in edges.tolist()]},
    }


def _packing(cfg: RunConfig, train: dict[str, Split]) -> dict[str, Any]:
    """Share of real tokens in the rows of the stream that training will read, and each source's share of it."""
    if not train:
        return {}
    stream = Stream(train, cfg.data, seed=cfg.seed, global_size=ROWS_AT_ONCE)
    tokens = positions = rows = samples = 0
    drawn = np.zeros(len(stream.names), np.int64)
    for step in stream:
        tokens += step.tokens
        positions += step.positions
        rows += step.filled
        samples += step.samples
        drawn += step.source_tokens
        if samples >= PACKED_SAMPLES:
            break
    return {
        "pack": cfg.data.pack,
        "samples": samples,
        "rows": rows,
        "efficiency": positions / (rows * cfg.data.seq_len) if rows else 0.0,
        "shared": 1.0 - positions / max(tokens, 1),
        "token_share": {name: float(count / max(tokens, 1)) for name, count in zip(stream.names, drawn, strict=True)},
    }


def _longest(splits: dict[str, Split], most: int = 5) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for split in splits.values():
        for row in np.argsort(split.lengths, kind="stable")[-most:].tolist():
            found.append(_origin(split, row))
    return sorted(found, key=lambda each: int(each["tokens"]), reverse=True)[:most]


def _origin(split: Split, row: int) -> dict[str, Any]:
    file, index, _ = split.origin(row)
    return {"source": split.name, "file": file, "row": index, "tokens": int(split.lengths[row])}


def chosen(train: dict[str, Split]) -> list[tuple[str, int]]:
    """(source, row) of SAMPLES rows to look at, shared out evenly among the sources."""
    rows = {name: sample_rows(split, SAMPLES) for name, split in train.items()}
    turns = [(name, found[turn]) for turn in range(SAMPLES) for name, found in rows.items() if turn < len(found)]
    return sorted(turns[:SAMPLES])


def sample_rows(split: Split, count: int) -> list[int]:
    """Rows to look at: chosen by hash, the same every time, without repeats."""
    first = range(min(split.rows, 10_000))
    order = sorted(first, key=lambda row: xxhash.xxh3_64_intdigest(f"{split.name} {row}".encode()))
    return sorted(order[:count])


def dirt(source: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Each kind of dirt in a source of the report: its name, in how many rows it was found, and what was done.

    Also each key of its rows that no rule of its format reads.
    """
    for name in sorted({*source["found"], *source["rejected"], *source["normalised"]}):
        count = source["found"].get(name, source["rejected"].get(name, source["normalised"].get(name, 0)))
        done = "counted only"
        if name in source["rejected"]:
            done = f"{source['rejected'][name]:,} to quarantine"
        elif name in source["normalised"]:
            done = f"{source['normalised'][name]:,} normalised"
        yield name, count, done
    for key, count in source["unread"].items():
        yield f"key {key}", count, "not read"
