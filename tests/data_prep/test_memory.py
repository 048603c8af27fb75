"""What a rank holds: a few bytes per row of the corpus, and nothing that grows with the steps it has made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scale import write_corpus

ROOT = Path(__file__).parents[2]

STEPS = """
import sys
from benchmarks.scale import own_memory
from conf.schema import StopConfig
from data_prep.stream.stream import Stream
from tests.data_prep.streams import data_config, fake_splits, leaf

tree = {"a": leaf(weight=3.0), "b": leaf(weight=1.0)}
data = data_config(tree, stop=StopConfig(epochs=1e6), window=64)
stream = Stream(fake_splits(a=500, b=300), data, seed=0, global_size=2)
seen = []
for step in stream:
    if step.index in (2_000, 60_000):
        seen.append(own_memory())
        if len(seen) == 2:
            break
print(seen[1] - seen[0])
"""


def output_of(*words: str) -> str:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_memory_does_not_grow_with_steps() -> None:
    """58,000 steps through 3,600 windows and 230 epochs, in MiB."""
    assert abs(float(output_of("-c", STEPS))) < 1.0


@pytest.mark.slow
def test_memory_is_a_few_bytes_per_row(tmp_path: Path) -> None:
    """Opened, and the first batch made: 20 MiB and 4 bytes per row bound what a million rows take."""
    rows = 1_000_000
    write_corpus(tmp_path, rows)
    found = json.loads(output_of(str(ROOT / "benchmarks" / "scale.py"), "--measure", str(tmp_path)))
    assert found["memory"] * 2**20 < 20 * 2**20 + 4 * rows
