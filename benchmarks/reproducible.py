"""What bits that repeat cost in time: python -m benchmarks.reproducible [RANKS]

Processes (gloo, fp32, Adam) train a Llama of 10 million parameters on rows of 64 tokens, at ZeRO-2 and ZeRO-3, with one
and with four micro-batches of one row. Three ways take turns, step by step, in the same processes and over the same
rows, so that a step is compared with its neighbours: as a run is by default, with compute.deterministic, and with
compute.reproducible as well. Given are medians of a step's time and of its ratio to the default step of the same turn.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TOKENS, TURNS, WARM = 64, 12, 2
WAYS = ("default", "deterministic", "reproducible")
CASES = [(stage, micro_batches) for stage in (2, 3) for micro_batches in (1, 4)]
LLAMA = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": TOKENS,
    "tie_word_embeddings": True,
}


def main() -> None:
    if "RANK" in os.environ:
        work(Path(sys.argv[1]))
        os._exit(0)  # gloo's threads may abort the interpreter's exit
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        subprocess.run([*command, "-m", "benchmarks.reproducible", folder], check=True, timeout=1800)
        print(table(json.loads(Path(folder, "found.json").read_text(encoding="utf-8")), ranks))


def table(found: dict[str, Any], ranks: int) -> str:
    """The figures as a table of markdown."""
    size = f"{found['parameters'] / 1e6:.0f}M parameters, {ranks} ranks of one thread, {TOKENS} tokens per micro-batch"
    lines = [
        f"{size}; medians of {TURNS} steps (quartiles of the ratio)",
        "",
        "| stage | micro-batches per rank | default, s | deterministic | reproducible |",
        "|---|---|---|---|---|",
    ]
    for stage, micro_batches in CASES:
        seconds: dict[str, list[float]] = found[f"{stage} {micro_batches}"]
        cells = [f"{statistics.median(seconds['default']):.3f}"]
        for way in WAYS[1:]:
            ratios = [own / base for own, base in zip(seconds[way], seconds["default"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
        lines.append(f"| {stage} | {micro_batches} | {' | '.join(cells)} |")
    return "\n".join(lines)


def work(folder: Path) -> None:
    """All cases on this rank; the first writes the seconds of every step."""
    import torch

    from train.engine import init_distributed
    from train.ranks.determinism import fix_kernels
    from train.ranks.group import on_device, ranks_from_environment

    ranks = init_distributed(on_device(ranks_from_environment(), threads=1))
    fix_kernels()
    found: dict[str, Any] = {}
    for stage, micro_batches in CASES:
        engines = {way: engine_of(stage, micro_batches, ranks, in_order=way == "reproducible") for way in WAYS}
        found["parameters"] = sum(getattr(p, "ds_numel", p.numel()) for p in engines["default"].parameters.values())
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(WARM + TURNS):
            for place in range(len(WAYS)):  # another one begins every turn
                way = WAYS[(turn + place) % len(WAYS)]
                torch.use_deterministic_algorithms(way != "default")
                ranks.barrier()
                began = time.perf_counter()
                step(engines[way], turn, micro_batches)
                if turn >= WARM:
                    seconds[way].append(time.perf_counter() - began)
        found[f"{stage} {micro_batches}"] = seconds
    if ranks.is_main:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


def engine_of(stage: int, micro_batches: int, ranks: Any, *, in_order: bool) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from conf.schema import BatchConfig, ModelConfig, OptimConfig, ZeroConfig
    from train.engine import Engine, deepspeed_settings

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA), dtype=torch.float32)
    zero, optim = ZeroConfig(stage=stage, overlap_comm=False), OptimConfig()  # type: ignore[arg-type]
    settings = deepspeed_settings(
        model=ModelConfig(path="x", dtype="fp32"),
        zero=zero,
        optim=optim,
        batch=BatchConfig(global_size=micro_batches * ranks.world, micro_size=1),
        world=ranks.world,
        on_cpu=True,
    )
    parameters = dict(model.named_parameters())
    engine = Engine(model, parameters, settings=settings, optim=optim, zero=zero, ranks=ranks)
    if in_order:
        engine.sum_in_order()
    return engine


def step(engine: Any, turn: int, micro_batches: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(turn * engine.ranks.world + engine.ranks.rank)
    for index in range(micro_batches):
        ids = torch.randint(0, LLAMA["vocab_size"], (1, TOKENS), generator=generator)  # type: ignore[call-overload]
        loss = engine.module(input_ids=ids, labels=ids).loss
        engine.accumulate(loss / (micro_batches * engine.ranks.world), last=index == micro_batches - 1)
    engine.step(1e-4)


if __name__ == "__main__":
    main()
