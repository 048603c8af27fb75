"""How long training waits for a checkpoint, and how much slower its steps are while one is written: make bench-ckpt.

Two processes (gloo, ZeRO-2, fp32, Adam) train a Llama of 60 million parameters on rows of 32 tokens and save it in
four ways, which take turns in one run: Corral's blocking save, its save in the background, DeepSpeed's own
save_checkpoint, and async_save of torch.distributed.checkpoint on the same fragments. ``waits``: seconds in which no
step runs. ``steps``: how much longer the steps took, in all, while something was written; on a CPU, writers and
training share the cores. ``published``: from the beginning until the checkpoint can be loaded.

python -m benchmarks.ckpt_stall [FOLDER]     FOLDER: where to write, 8 GB (a temporary folder)
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RANKS, ROUNDS, TOKENS = 2, 5, 32
QUIET = 6
"""Steps before a save, whose median is the time of a step; the first round of all warms up and does not count."""
WAYS = {
    "blocking": "Corral, training waits",
    "background": "Corral, in the background",
    "deepspeed": "DeepSpeed save_checkpoint",
    "dcp": "torch DCP async_save",
}
KEEPS = {"blocking": "yes / yes", "background": "yes / yes", "deepspeed": "no / no", "dcp": "yes / no"}
"""Whether what is written is flushed to the disk / has hashes. DCP flushes by default (FileSystemWriter.sync_files)."""


def main() -> None:
    if "RANK" in os.environ:
        work(Path(sys.argv[1]))
        os._exit(0)  # gloo's threads may abort the interpreter's exit
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
        subprocess.run([*command, "-m", "benchmarks.ckpt_stall", folder], check=True, timeout=1800)
        print(table(json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))))


def table(found: dict[str, Any]) -> str:
    """The figures as a table of markdown."""
    from train.plan.speed import checkpoint_interval

    step, size = found["step_s"], f"{found['parameters'] / 1e6:.0f}M parameters, {found['bytes'] / 1e6:.0f} MB"
    lines = [
        f"{size}, {RANKS} ranks, steps of {step:.2f} s; medians (range) of {ROUNDS - 1} saves",
        "",
        "| | waits, s | steps, s | published after, s | fsync / hashes | every 200 steps | Young's interval |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, name in WAYS.items():
        rounds = found["ways"][way]
        stall = statistics.median(each["waits"] for each in rounds)
        interval = checkpoint_interval(stall, RANKS)
        cells = [f"{spread(rounds, key)}" for key in ("waits", "steps", "published")]
        shares = [f"{stall / (200 * step + stall):.2%}", f"{interval / 60:.0f} min, {stall / (interval + stall):.4%}"]
        lines.append(f"| {name} | " + " | ".join([*cells, KEEPS[way], *shares]) + " |")
    return "\n".join(lines)


def spread(rounds: list[dict[str, float]], key: str) -> str:
    values = sorted(each[key] for each in rounds)
    return f"{statistics.median(values):.2f} ({values[0]:.2f}-{values[-1]:.2f})"


class Bench:
    """A model in training, and the four ways to save it."""

    def __init__(self, folder: Path) -> None:
        from train.engine import init_distributed  # before torch.distributed: DeepSpeed's import must come first
        from train.ranks.group import on_device, ranks_from_environment

        self.folder = folder
        self.ranks = init_distributed(on_device(ranks_from_environment(), threads=1))
        self.engine, self.model = engine_of(self.ranks)

    def step(self) -> float:
        """One update; its seconds."""
        import torch

        began = time.perf_counter()
        ids = torch.randint(0, 8192, (1, TOKENS))
        loss = self.engine.module(input_ids=ids, labels=ids, use_cache=False).loss
        self.engine.accumulate(loss / self.ranks.world, last=True)
        self.engine.step(1e-5)
        return time.perf_counter() - began

    def save(self, way: str, number: int) -> dict[str, float]:
        """Save once and train on until the save has ended. Figures of this rank."""
        quiet = statistics.median(self.step() for _ in range(QUIET))
        self.ranks.barrier()
        began = time.perf_counter()
        go_on = getattr(self, way)(number)
        waits, slower = time.perf_counter() - began, 0.0
        while True:
            at = time.perf_counter()
            ended = go_on()
            waits += time.perf_counter() - at
            if ended:
                break
            slower += self.step() - quiet
        return {"waits": waits, "steps": slower, "published": time.perf_counter() - began, "quiet": quiet}

    def blocking(self, number: int) -> Callable[[], bool]:
        from train import checkpoint

        where, extra = self.folder / "blocking", {"state": {}, "stream": {}}
        done = checkpoint.save(where, self.engine, ranks=self.ranks, attempt=0, step=number + 1, extra=extra, keep=2)
        assert not isinstance(done, str), done
        return lambda: True

    def background(self, number: int) -> Callable[[], bool]:
        from train import checkpoint

        if not hasattr(self, "saver"):
            where = self.folder / "background"
            self.saver = checkpoint.Saver(where, self.engine, ranks=self.ranks, attempt=0, keep=2, background="always")
        self.saver.begin(number + 1, {"state": {}, "stream": {}})

        def go_on() -> bool:
            if self.ranks.any(self.saver.writing):  # in a run, the step's own collective says this
                return False
            return self.saver.advance() is not None

        return go_on

    def deepspeed(self, number: int) -> Callable[[], bool]:
        self.engine.module.save_checkpoint(str(self.folder / "deepspeed"), tag=f"step-{number}")
        return lambda: True

    def dcp(self, number: int) -> Callable[[], bool]:
        import torch.distributed as dist
        import torch.distributed.checkpoint as dcp

        if not hasattr(self, "group"):
            self.group = dist.new_group(backend="gloo")
        state = {
            f"{self.ranks.rank}::{fragment.name}::{kind}": tensor
            for fragment in self.engine.fragments()
            for kind, tensor in fragment.tensors.items()
        }
        saved: Any = dcp.async_save(
            state, checkpoint_id=str(self.folder / "dcp" / f"step-{number}"), process_group=self.group
        )
        return lambda: not self.ranks.any(not saved.done())


def engine_of(ranks: Any) -> tuple[Any, Any]:
    """A Llama of 60 million parameters under ZeRO-2, as ``train`` builds its engine."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from conf.schema import BatchConfig, ModelConfig, OptimConfig, ZeroConfig
    from train.engine import Engine, deepspeed_settings

    sizes = {"hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 10, "num_attention_heads": 10}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8192, tie_word_embeddings=False, **sizes))
    zero, optim = ZeroConfig(stage=2), OptimConfig()
    settings = deepspeed_settings(
        model=ModelConfig(dtype="fp32"),
        zero=zero,
        optim=optim,
        batch=BatchConfig(global_size=ranks.world),
        world=ranks.world,
        slices=1,
        on_cpu=True,
    )
    parameters = dict(model.named_parameters())
    return Engine(model, parameters, settings=settings, optim=optim, zero=zero, ranks=ranks), model


def work(folder: Path) -> None:
    """What one rank does; rank 0 leaves ``found.json``."""
    bench = Bench(folder)
    for _ in range(3):
        bench.step()
    ways: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(ROUNDS):
        for way, rounds in ways.items():
            # the slowest rank counts: all others wait for it at their next step
            answers = bench.ranks.gather(bench.save(way, number))
            rounds.append({key: max(each[key] for each in answers) for key in answers[0]})
            if bench.ranks.is_main and way in ("deepspeed", "dcp"):
                shutil.rmtree(folder / way / f"step-{number}")
            if bench.ranks.is_main:
                print(number, way, rounds[-1], file=sys.stderr, flush=True)
            bench.ranks.barrier()
    if not bench.ranks.is_main:
        return
    quiet = [each["quiet"] for rounds in ways.values() for each in rounds[1:]]
    newest = next((folder / "background" / "checkpoints").glob("step-*"))
    found = {
        "parameters": sum(parameter.numel() for parameter in bench.model.parameters()),
        "bytes": sum(file.stat().st_size for file in newest.iterdir()),
        "step_s": statistics.median(quiet),
        "ways": {way: rounds[1:] for way, rounds in ways.items()},
    }
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
