"""A few rows of each of flan_mini's files, taken from the published ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

HELD_OUT_TASKS = ("task664_", "task957_")
TASKS = ("task002_", "task126_", "task591_", *HELD_OUT_TASKS)
COT_ROWS, NIV2_ROWS = 8, 20
"""Rows of each file, or task."""


def some_lines(source: Path, target: Path, keep: Callable[[int, bytes], bool]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = gzip.decompress(source.read_bytes()).splitlines(keepends=True)
    kept = [line for number, line in enumerate(lines) if keep(number, line)]
    target.write_bytes(gzip.compress(b"".join(kept), mtime=0))


def flan_files(folder: Path, real_data: Callable[[str], Path]) -> Path:
    """Fill ``folder`` for CORRAL_DATA: some rows of every kind, in the folders and files of the whole."""
    for source in real_data("flan_cot").iterdir():
        some_lines(source, folder / "flan_cot" / source.name, lambda number, line: number < COT_ROWS)
    # 40 rows per template; of every tenth template the shorter ones of the first 12.
    some_lines(
        real_data("t0_sf/t0_sf_sample.jsonl.gz"),
        folder / "t0_sf" / "t0_sf_sample.jsonl.gz",
        lambda number, line: number // 40 % 10 == 3 and number % 40 < 12 and len(line) < 1200,
    )
    (folder / "niv2" / "tasks").mkdir(parents=True)
    for source in real_data("niv2/tasks").iterdir():
        if source.name.startswith(TASKS):
            task = json.loads(gzip.decompress(source.read_bytes()))
            task["Instances"] = task["Instances"][:NIV2_ROWS]
            (folder / "niv2" / "tasks" / source.name.removesuffix(".gz")).write_text(json.dumps(task))
    return folder
