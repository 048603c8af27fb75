"""What preparation did, in numbers: rows in and out by reason, lengths, supervised share, mixture, packing, longest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from rich.console import Console
from rich.table import Table

from conf.schema import RunConfig
from data_prep.clean import RULES
from data_prep.durable import commit
from data_prep.shards import Corpus, Split, open_corpus
from data_prep.stream import Stream

PERCENTILES = (50, 90, 99, 99.9)
BARS = 24
"""Bars of a length histogram."""
PACKED_SAMPLES = 200_000
"""Packing efficiency is measured on so many samples of the stream; it does not change beyond."""
SAMPLES = 10
LEVELS = "▁▂▃▄▅▆▇█"
WHY = {rule.name: rule.why for rule in RULES} | {
    "duplicate": "the same as an earlier row of its source",
    "near_duplicate": "its three-word runs are nearly those of an earlier row of its source",
    "contaminated": "it overlaps with a row of an evaluation set",
    "over_length": "longer than data.seq_len",
}
DUPLICATES = "Duplicates are looked for within each source: a row that stands in two sources stays in both."


def write(cfg: RunConfig, path: Path) -> dict[str, Any]:
    """Build the report of a finished corpus and write report.json and report.html into it, unless it is read-only."""
    from data_prep.report_html import page

    corpus = open_corpus(path, verify="sizes")
    report = build(cfg, corpus)
    if not os.access(path, os.W_OK):  # a finished corpus that is shared read-only
        return report
    commit(path / "report.json", json.dumps(report, indent=1).encode())
    commit(path / "report.html", page(report, corpus).encode())
    return report


def build(cfg: RunConfig, corpus: Corpus) -> dict[str, Any]:
    """The whole report as a JSON-able mapping."""
    train, validation = corpus.split("train"), corpus.split("validation")
    clean = corpus.manifest["config"]["data"]["clean"]
    report: dict[str, Any] = {
        "corpus": str(corpus.path),
        "preparation": json.loads((corpus.path / "preparation.json").read_text()),
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
        "left_out": entry.get("left_out", 0),
        "flagged": {rule: count for rule, count in entry["found"].items() if not clean[rule]},
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
    stream = Stream(train, cfg.data, seed=cfg.seed, global_size=cfg.batch.global_size)
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


def _shared(packing: dict[str, Any]) -> str:
    """What the samples of a row need not compute twice, as a clause; empty if nothing."""
    return f"; {packing['shared']:.1%} of the tokens are prefixes that rows share" if packing["shared"] else ""


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


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report."""
    for name, source in report["sources"].items():
        lengths = source["lengths"]
        console.print(
            f"[bold]{name}[/]  {source['rows']:,} rows in: {source['kept']['train']:,} to train on, "
            f"{source['kept']['validation']:,} held out, {sum(source['rejected'].values()):,} in quarantine",
            soft_wrap=True,
        )
        if lengths:
            console.print(
                f"  {source['tokens']:,} tokens, {source['supervised_share']:.1%} of them targets; "
                f"length mean {lengths['mean']:.1f}, p50 {lengths['p50']}, p99 {lengths['p99']}, max {lengths['max']}",
                soft_wrap=True,
            )
            console.print(f"  {_bars(lengths['histogram'])}", highlight=False)
        if source["left_out"]:
            console.print(f"  {source['left_out']:,} further rows of its files were left out by select")
        if source["truncated"]:
            console.print(f"  {source['truncated']:,} rows were cut at {report['seq_len']} tokens")
        if source["found"] or source["rejected"]:
            console.print(_dirt(source))
    _show_whole(report, console)
    timing = report["preparation"]
    reused = timing.get("reused", [])
    rows = sum(source["rows"] for name, source in report["sources"].items() if name not in reused)
    console.print(f"{rows:,} rows in {timing['seconds']} s, {rows / max(timing['seconds'], 1e-3):,.0f} rows/s")
    if reused:
        console.print(f"taken over from corpora beside this one: {', '.join(reused)}", soft_wrap=True)


def _show_whole(report: dict[str, Any], console: Console) -> None:
    """What is about all sources together."""
    packing = report["packing"]
    if packing:
        full = f"{packing['efficiency']:.3%} of {packing['rows']:,} rows is real"
        console.print(f"packing at {report['seq_len']}: {full}{_shared(packing)}", soft_wrap=True)
        if len(packing["token_share"]) > 1:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in packing["token_share"].items())
            console.print(f"share of the tokens drawn: {shares}", soft_wrap=True)
    for each in report["longest"][:3]:
        console.print(f"longest: {each['tokens']:,} tokens, row {each['row']} of {each['file']}", soft_wrap=True)
    if any("duplicate" in source["found"] for source in report["sources"].values()):
        console.print(DUPLICATES, soft_wrap=True)


def _bars(histogram: dict[str, Any]) -> str:
    """The histogram of lengths as one line."""
    counts, edges = histogram["counts"], histogram["edges"]
    tallest = max(counts)
    # A bar with rows in it is never invisible.
    heights = (-(-count * len(LEVELS) // tallest) for count in counts)
    bars = "".join(LEVELS[height - 1] if height else " " for height in heights)
    return f"{edges[0]:.0f} {bars} {edges[-1]:,.0f} tokens"


def _dirt(source: dict[str, Any]) -> Table:
    table = Table("kind", "rows", "done", "why", box=None, padding=(0, 1), pad_edge=True)
    for name, count, done in dirt(source):
        table.add_row(name, f"{count:,}", done, WHY.get(name, ""))
    return table


def dirt(source: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Each kind of dirt in a source of the report: its name, in how many rows it was found, and what was done."""
    for name in sorted({*source["found"], *source["rejected"]}):
        count = source["found"].get(name, source["rejected"].get(name, 0))
        done = "counted only"
        if name in source["rejected"]:
            done = f"{source['rejected'][name]:,} to quarantine"
        elif name in source["normalised"]:
            done = f"{source['normalised'][name]:,} normalised"
        yield name, count, done
