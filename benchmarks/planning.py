"""Measures what a global step costs every rank to compute: ``python benchmarks/planning.py``; under a minute, no GPU.

Every rank computes all rows of a step, so that ranks need no messages, but makes only its own rows into tensors. The
global batch grows with the ranks (8 rows of 2,048 tokens per rank), and so does a rank's share of a core. The benchmark
measures this process's CPU time per step, with lengths only; it reads no tokens. The cost is per sample: Alpaca's short
samples are the worst case, a mixture with few-shot prompts is better. The share of a core assumes that every rank
trains 10,000 tokens/s, as a 7B model does on one GPU.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.made import ALPACA, MIXED, Shapes, mixture
from data_prep.stream.stream import Stream, rank_rows

RANKS = (1, 8, 64, 1024)
ROWS_PER_RANK = 8
SEQ_LEN = 2048
TOKENS_PER_S_PER_RANK = 10_000
SAMPLES = 200_000
"""Minimum number of samples per figure: enough for two digits."""


def measure(shapes: Shapes, ranks: int) -> dict[str, float]:
    """CPU seconds per step of one rank among ``ranks``, and the tokens of a step."""
    splits, data = mixture(shapes, rows=1_000_000, seq_len=SEQ_LEN)
    stream = Stream(splits, data, seed=0, global_size=ROWS_PER_RANK * ranks)
    next(stream)
    steps = samples = tokens = 0
    began = time.process_time()
    while samples < SAMPLES or steps < 3:
        step = next(stream)
        rank_rows(step, ranks - 1, ranks)
        steps, samples, tokens = steps + 1, samples + step.samples, tokens + step.tokens
    seconds = (time.process_time() - began) / steps
    return {
        "step": seconds,
        "sample": seconds * steps / samples,
        "tokens": tokens / steps,
        "trained": tokens / steps / ranks / TOKENS_PER_S_PER_RANK,
    }


def main() -> None:
    table = Table(title="Planning, per rank", title_justify="left")
    columns = ("data", "ranks", "tokens/step", "CPU/step", "CPU/sample", "share of a core", "planned tokens/s")
    for column in columns:
        table.add_column(column, justify="right")
    for name, shapes in (("alpaca", ALPACA), ("mixture", MIXED)):
        for ranks in RANKS:
            found = min((measure(shapes, ranks) for _ in range(3)), key=lambda each: each["sample"])
            table.add_row(
                name,
                f"{ranks:,}",
                f"{found['tokens']:,.0f}",
                f"{found['step'] * 1e3:,.2f} ms",
                f"{found['sample'] * 1e6:.2f} us",
                f"{found['step'] / found['trained']:.3%}",
                f"{found['tokens'] / found['step'] / 1e6:,.0f} Mtok/s",
            )
    Console(width=110).print(table)
    load = os.getloadavg()[0]
    print(f"best of 3; {platform.processor() or platform.machine()}, Python {platform.python_version()}, "
          f"numpy {np.__version__}, load average {load:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
