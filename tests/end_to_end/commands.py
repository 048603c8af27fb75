"""The commands a user types, run as a user runs them: real processes, outer timeouts, their output kept."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

TINY_LLAMA = (
    "model.config={model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, "
    "num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 256, tie_word_embeddings: false}"
)


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }


def start(command: Sequence[str], **kwargs: Any) -> subprocess.Popen[str]:
    """``command`` in its own process group, from the repository root."""
    return subprocess.Popen(
        list(command),
        cwd=ROOT,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **kwargs,
    )


def finish(process: subprocess.Popen[str], timeout: float) -> tuple[int, str]:
    """Exit code and output; a hang kills the whole group and fails."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"hung for {timeout} s: {process.args}\n{output[-3000:]}") from None
    return process.returncode, output


def call(module: str, *arguments: str, timeout: float = 120) -> tuple[int, str]:
    """``python -m module arguments``."""
    return finish(start([sys.executable, "-m", module, *arguments]), timeout)


def torchrun(world: int, *arguments: str) -> subprocess.Popen[str]:
    """``torchrun --nproc-per-node=world -m train arguments`` on a free port."""
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    return start([*head, "-m", "train", *arguments])


def train(world: int, *arguments: str, timeout: float = 180) -> tuple[int, str]:
    return finish(torchrun(world, *arguments), timeout)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def demo_rows(path: Path, count: int) -> Path:
    """The first ``count`` rows of the shipped demo data as a jsonl file."""
    with gzip.open(ROOT / "data_prep" / "demo" / "words.jsonl.gz", "rt") as file:
        path.write_text("".join(line for _, line in zip(range(count), file, strict=False)))
    return path


def tiny_run(folder: Path, name: str, *more: str) -> list[str]:
    """Arguments of a run of a few seconds on the demo rows; ``folder`` holds its data, corpus and run_dir."""
    source = folder / "rows.jsonl"
    if not source.exists():
        demo_rows(source, 600)
    return [
        f"name={name}",
        "data=demo",
        f"data.sources.words.path={source}",
        "data.sources.words.validation_fraction=0.05",
        "data.seq_len=128",
        f"data.prepared={folder / 'corpus'}",
        "model=demo_llama",
        TINY_LLAMA,
        "model.vocab_size=400",
        "model.dtype=fp32",
        f"run_dir={folder / name}",
        "batch.global_size=4",
        "batch.micro_size=2",
        "optim.lr=1e-2",
        "schedule.max_steps=8",
        "tracker.wandb=disabled",
        "evaluation.max_rows=16",
        "evaluation.generate_rows=2",
        "evaluation.max_new_tokens=8",
        *more,
    ]
