"""Memory of preparation on an input larger than what it may hold: ``GIGABYTES=5 python benchmarks/prepare_memory.py``.

Rows as long as Alpaca's (made-up words, no two rows alike, about 440 bytes each) are written to a folder below $TMPDIR
and prepared by ``python -m data_prep`` with NUM_PROC processes (2). Sampled ten times a second: the resident memory of
that process and all its children, added up, so that what they share counts for each. The tokenizer splits at blanks,
which keeps the run short and changes nothing that is held; TOKENIZER=FOLDER takes another one. Five gigabytes need
25 GB of disk and three quarters of an hour of two cores; everything is deleted at the end.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
FIRST, SECOND = ("ba", "de", "ki", "lo", "mu", "ra", "so"), ("", "n", "ta", "rim", "longer")
WORDS = [first + second for first in FIRST for second in SECOND]
MADE = 20_000
"""Rows that are made; the others repeat them under new numbers, which makes them other rows."""


def made_rows() -> list[str]:
    """JSON of rows with the word counts of Alpaca (README of the tests' data: 10, 4 on average, 44), after a number."""
    draw = random.Random(0)

    def text(mean: float) -> str:
        return " ".join(draw.choices(WORDS, k=1 + int(min(draw.lognormvariate(-0.3, 0.8), 4) * mean)))

    rows = (
        {"instruction": text(12), "input": text(10) if draw.random() < 0.4 else "", "output": text(50)}
        for _ in range(MADE)
    )
    return [json.dumps(row)[1:] for row in rows]


def write_input(path: Path, size: int) -> int:
    """At least ``size`` bytes of JSON lines; returns the rows."""
    rows, number, written = made_rows(), 0, 0
    with path.open("w") as out:
        while written < size:
            row = rows[number % MADE].replace('"instruction": "', f'{{"instruction": "row {number} ', 1)
            written += out.write(row) + out.write("\n")
            number += 1
    return number


def write_tokenizer(folder: Path) -> Path:
    """One id per word, an unknown one for the rest."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<end>", "<unknown>", *WORDS]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unknown>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unknown>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(str(folder))
    return folder


def resident(process: psutil.Process) -> int:
    """Bytes of the process and everything it has started."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def watched(command: Sequence[str], log: Path) -> tuple[int, float]:
    """(most bytes resident, seconds) of a command; its output goes to ``log``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    began, most = time.monotonic(), 0
    with log.open("w") as output:
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        process = psutil.Process(child.pid)
        while child.poll() is None:
            most = max(most, resident(process))
            time.sleep(0.1)
    if child.returncode:
        sys.exit(f"the preparation left with {child.returncode}:\n{log.read_text()[-2000:]}")
    return most, time.monotonic() - began


def main() -> None:
    size, num_proc = float(os.environ.get("GIGABYTES", "5")), int(os.environ.get("NUM_PROC", "2"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_input(folder / "rows.jsonl", int(size * 1e9))
        tokenizer = os.environ.get("TOKENIZER") or write_tokenizer(folder / "words")
        command = [sys.executable, "-m", "data_prep", "~data.sources", "data.seq_len=2048", f"data.num_proc={num_proc}"]
        command += [f"+data.sources={{made: {{format: alpaca, path: {folder / 'rows.jsonl'}}}}}"]
        command += [f"data.prepared={folder / 'corpus'}", f"model.tokenizer={tokenizer}"]
        most, seconds = watched(command, folder / "log")
        kept = json.loads((folder / "corpus" / "MANIFEST.json").read_text())["sources"]["made"]["splits"]["train"]
        print(f"{size:g} GB, {rows:,} rows, {num_proc} processes: {most / 2**20:,.0f} MiB at most, {seconds:,.0f} s")
        print(f"{kept['rows']:,} samples of {kept['tokens'] / kept['rows']:.0f} tokens on average are in the corpus")


if __name__ == "__main__":
    main()
