"""Compares training with the peers on real Alpaca lengths: ``make bench-train``; about fifteen minutes, no GPU.

The model is a Llama of 6 layers x 256 with GPT-2's vocabulary and random weights, in fp32, on all cores of this machine
in one process. Every competitor (``peers.py``) gets the same samples in every optimizer step. Competitors take turns, A
B C A B C, so that a busy machine affects all alike; a turn is a new process whose first update is warm-up. The losses
must agree. Needs CORRAL_TEST_DATA (Alpaca and GPT-2's tokenizer) and ``pip install -e .[bench]``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.overhead import told, where
from conf.whole_numbers import ceil_div

COMPETITORS = ("corral", "bare", "hf", "trl", "trl-packed")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
UPDATES = 3
"""Updates per turn; the first is warm-up."""
ROWS, SEQ_LEN = 5, 2048
"""Packed rows per update, and tokens per row: together about 128 samples, the global batch of Alpaca's recipe."""
PADDED_ROWS = 8
AGREE = 1e-3
MODEL = (
    "model.config={model_type: llama, hidden_size: 256, intermediate_size: 1024, num_hidden_layers: 6, "
    "num_attention_heads: 8, num_key_value_heads: 8, max_position_embeddings: 2048, tie_word_embeddings: true}"
)


def arguments(data: Path, folder: Path) -> list[str]:
    """The overrides of the run that all competitors share."""
    return [
        "name=bench",
        "data=alpaca",
        f"data.sources.alpaca.path={data / 'alpaca' / 'alpaca_data.json.gz'}",
        f"data.prepared={folder / 'corpus'}",
        f"data.seq_len={SEQ_LEN}",
        f"model.tokenizer={data / 'tokenizers' / 'gpt2'}",
        f"model.path={folder / 'init'}",
        "model.dtype=fp32",
        "zero=0",
        "attention=packed",
        f"batch.global_size={ROWS}",
        f"schedule.max_steps={UPDATES}",
        "schedule=constant",
        "schedule.warmup_fraction=null",
        "optim.lr=1e-4",
        "optim.clip=1.0",
        "tracker.wandb=disabled",
    ]


def lay_out(data: Path, folder: Path) -> dict[str, float]:
    """Write the corpus, the weights and the samples of every update; return the totals of the timed updates."""
    from conf.compose import compose
    from data_prep.prepare import prepare
    from train.model.weights import base_folder
    from train.ranks.group import Ranks

    chosen = arguments(data, folder)
    (folder / "arguments.json").write_text(json.dumps(chosen), encoding="utf-8")
    random = [override for override in chosen if not override.startswith("model.path")]
    cfg = compose([*random, "model=demo_llama", MODEL, f"model.tokenizer={data / 'tokenizers' / 'gpt2'}"])
    base_folder(cfg.model, Ranks(), run_dir=folder, seed=0, vocab_size=50257)
    prepare(cfg, argv=[])
    return write_updates(cfg, folder, updates=UPDATES, padded=PADDED_ROWS, packed_tokens=SEQ_LEN)


def write_updates(cfg: Any, folder: Path, *, updates: int, padded: int, packed_tokens: int) -> dict[str, float]:
    """Write every update's samples for the peers, in padded and in packed micro-batches; return the timed totals."""
    from data_prep.corpus.prepared import open_prepared
    from data_prep.stream.stream import Stream

    splits = open_prepared(cfg).split("train")
    stream = Stream(splits, cfg.data, seed=cfg.seed, global_size=cfg.batch.global_size, max_steps=updates)
    plans = list(stream)
    (split,) = splits.values()
    steps = [[pair for row in plan.rows for pair in row.samples] for plan in plans]
    for name, size in (("padded", padded), ("packed", None)):
        parts = max(
            ceil_div(len(step), size) if size else ceil_div(p.tokens, packed_tokens)
            for step, p in zip(steps, plans, strict=True)
        )
        divisions = [full_first(step, parts, size) if size else by_tokens(step, parts, split.lengths) for step in steps]
        (folder / f"{name}.json").write_text(json.dumps(divisions), encoding="utf-8")
    timed = plans[1:]
    return {
        "samples": sum(plan.samples for plan in timed),
        "tokens": sum(plan.tokens for plan in timed),
        "targets": sum(plan.targets for plan in timed),
        "positions": sum(plan.positions for plan in timed),
    }


def full_first(step: list[Any], parts: int, size: int) -> list[list[Any]]:
    """The samples of a step in ``parts`` micro-batches: full ones (``size``) first, but none without a sample."""
    divided, rest = [], list(step)
    for left in range(parts - 1, -1, -1):
        taken = min(size, len(rest) - left)
        divided.append(rest[:taken])
        rest = rest[taken:]
    return divided


def by_tokens(step: list[Any], parts: int, lengths: Any) -> list[list[Any]]:
    """The samples of a step in ``parts`` micro-batches of about equal numbers of tokens."""
    bins: list[list[Any]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for pair in sorted(step, key=lambda pair: -int(lengths[pair[1]])):
        least = loads.index(min(loads))
        bins[least].append(pair)
        loads[least] += int(lengths[pair[1]])
    return bins


def main() -> None:
    data = Path(
        os.environ.get("CORRAL_TEST_DATA") or sys.exit("corral: set CORRAL_TEST_DATA to the folder of the data")
    )
    with tempfile.TemporaryDirectory(prefix="corral-bench-") as name:
        folder = Path(name)
        amounts = lay_out(data.resolve(), folder)
        turns: dict[str, list[dict[str, Any]]] = {each: [] for each in COMPETITORS}
        for _ in range(ROUNDS):
            for each in COMPETITORS:
                subprocess.run([sys.executable, str(Path(__file__).with_name("peers.py")), each, name], check=True)
                turns[each].append(json.loads((folder / f"{each}.json").read_text(encoding="utf-8")))
        subprocess.run([sys.executable, str(Path(__file__).with_name("overhead.py")), name], check=True)
        inside = json.loads((folder / "overhead.json").read_text(encoding="utf-8"))
    show(turns, amounts)
    print(told(inside["updates"]), where(inside["profile"]), sep="\n")


def show(turns: dict[str, list[dict[str, Any]]], amounts: dict[str, float]) -> None:
    """Print medians and spreads over the turns, ratios to Corral, and whether the losses agree."""
    seconds = {each: [turn["ends"][-1] - turn["ends"][0] for turn in found] for each, found in turns.items()}
    wanted = turns["corral"][0]["losses"]
    table = Table(title=f"Training, {ROUNDS} turns each of {UPDATES - 1} timed updates, {os.cpu_count()} cores")
    columns = (
        "",
        "samples/s",
        "spread",
        "tokens/s",
        "targets/s",
        "peak GiB",
        "to 1st step s",
        "loss apart",
        "corral is",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for each, found in turns.items():
        middle = statistics.median(seconds[each])
        apart = max(abs(a - b) for turn in found for a, b in zip(turn["losses"], wanted, strict=True))
        ratios = [other / own for other, own in zip(seconds[each], seconds["corral"], strict=True)]
        table.add_row(
            each,
            f"{amounts['samples'] / middle:.2f}",
            f"{(max(seconds[each]) - min(seconds[each])) / middle:.1%}",
            f"{amounts['tokens'] / middle:,.0f}",
            f"{amounts['targets'] / middle:,.0f}",
            f"{max(turn['peak_gib'] for turn in found):.2f}",
            f"{statistics.median(turn['ends'][0] for turn in found):.1f}",
            f"{apart:.1e}" + ("" if apart <= AGREE else " DIFFERENT"),
            f"{statistics.median(ratios):.2f}x as fast",
        )
    Console(width=120).print(table)
    print(
        f"{amounts['samples']:.0f} samples, {amounts['tokens']:.0f} tokens, {amounts['targets']:.0f} targets; corral "
        f"computes {amounts['positions'] / amounts['tokens']:.1%} of the tokens, the rest are shared prefixes"
    )


if __name__ == "__main__":
    main()
