"""Measures preparation's memory on input larger than memory: ``GIGABYTES=5 python benchmarks/prepare_memory.py``.

It writes records as long as Alpaca's (random words, no two records alike, about 440 bytes per record) to a folder below
$TMPDIR, and prepares them by ``python -m data_prep`` with NUM_PROC processes (2). Ten times a second it adds the
resident memory of that process and all its children, so shared memory counts once per process. The tokenizer splits at
blanks, which keeps the run short and does not change memory; TOKENIZER=FOLDER uses another one. Five gigabytes need
25 GB of disk and three quarters of an hour on two cores; the end deletes everything.
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
"""Different records; later records repeat them with new numbers, which makes them different too."""


def made_rows() -> list[str]:
    """JSON of records with Alpaca's mean word counts (README of the tests' data: 10, 4 and 44)."""
    draw = random.Random(0)

    def text(mean: float) -> str:
        return " ".join(draw.choices(WORDS, k=1 + int(min(draw.lognormvariate(-0.3, 0.8), 4) * mean)))

    rows = (
        {"instruction": text(12), "input": text(10) if draw.random() < 0.4 else "", "output": text(50)}
        for _ in range(MADE)
    )
    return [json.dumps(row)[1:] for row in rows]


def write_input(path: Path, size: int) -> int:
    """Write at least ``size`` bytes of JSON lines; return the number of records."""
    rows, number, written = made_rows(), 0, 0
    with path.open("w", encoding="utf-8") as out:
        while written < size:
            row = rows[number % MADE].replace('"instruction": "', f'{{"instruction": "row {number} ', 1)
            written += out.write(row) + out.write("\n")
            number += 1
    return number


def write_tokenizer(folder: Path) -> Path:
    """Write a tokenizer with one id per word, and an id for unknown words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<end>", "<unknown>", *WORDS]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unknown>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unknown>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(str(folder))
    return folder


def resident(process: psutil.Process) -> int:
    """Resident bytes of the process and its descendants."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def watched(command: Sequence[str], log: Path) -> tuple[int, float]:
    """(peak resident bytes, seconds) of a command; its output goes to ``log``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    began, most = time.monotonic(), 0
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        process = psutil.Process(child.pid)
        while child.poll() is None:
            most = max(most, resident(process))
            time.sleep(0.1)
    if child.returncode:
        sys.exit(
            f"corral: the preparation ended with code {child.returncode}:\n{log.read_text(encoding='utf-8')[-2000:]}"
        )
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
        kept = json.loads((folder / "corpus" / "MANIFEST.json").read_text(encoding="utf-8"))["sources"]["made"][
            "splits"
        ]["train"]
        print(f"{size:g} GB, {rows:,} records, {num_proc} processes: peak {most / 2**20:,.0f} MiB, {seconds:,.0f} s")
        print(f"the corpus has {kept['rows']:,} samples of {kept['tokens'] / kept['rows']:.0f} tokens on average")


if __name__ == "__main__":
    main()
