"""One process of ``make bench-gpu``: ``python -m benchmarks.gpu_worker JOB FOLDER DEVICE``.

The parts of a run are built once, as ``python -m train`` builds them; the variants take turns of a few updates each, A
B C A B C, over the same plan. FOLDER/results/JOB.json gets, for every timed update, its seconds, its loss and what it
computed, FOLDER/profiles/JOB.txt the kernels of one more. The device is waited for at the end of each update.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_jobs import JOBS, LLAMA_1B, LLAMA_8B, TINY, Job

WARM_UP, ROUNDS, TURN = (2, 3, 2) if torch.cuda.is_available() else (1, 1, 1)
"""Updates of each variant that are not timed; turns; updates of a turn."""
SEQ_LEN = {"alpaca": 2048, "documents": 8192}


@dataclass(frozen=True)
class Update:
    seconds: float
    loss: float
    samples: int
    tokens: int
    """Of the samples, whole: padding and sharing change nothing here."""
    targets: int
    flops: float
    """Executed matrix FLOPs, recomputation not counted."""


def main(name: str, folder: Path, device: str) -> None:
    job, began = JOBS[name], time.perf_counter()
    tiny = device == "cpu"
    start = random_start(job.model, folder, device)
    run = assembled(job, folder, start, tiny)
    turns = {variant: updates(run, variant, WARM_UP + ROUNDS * TURN + 1) for variant in job.variants}
    found: dict[str, list[Update]] = {variant: [] for variant in job.variants}
    first = 0.0
    for turn in turns.values():
        for _ in range(WARM_UP):
            next(turn)
            first = first or time.perf_counter() - began
    peaks = {}
    for _ in range(ROUNDS):
        for variant, turn in turns.items():
            reset_peak(device)
            found[variant] += [next(turn) for _ in range(TURN)]
            peaks[variant] = peak_gib(device)
    if "corral" in turns:
        profile(turns["corral"], folder, name, device)
    result = {
        "versions": versions(device),
        "first_step_s": first,
        "planned_gib": planned_gib(run),
        "variants": {
            variant: {"updates": [asdict(each) for each in of_one], "peak_gib": peaks[variant]}
            for variant, of_one in found.items()
        },
    }
    write(folder, name, result)
    os._exit(0)


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    results = folder / "results"
    results.mkdir(exist_ok=True)
    (results / f".{name}").write_text(json.dumps(result))
    (results / f".{name}").rename(results / f"{name}.json")


def versions(device: str) -> dict[str, str]:
    from importlib.metadata import version

    card = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    return {"device": card} | {each: version(each) for each in ("torch", "transformers", "deepspeed", "peft")}


def random_start(model: str, folder: Path, device: str) -> Path:
    """Weights of the model's shape, drawn on the device: drawing 8 billion on a CPU takes minutes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    target = folder / f"init-{model}"
    if (target / "config.json").is_file():
        return target
    values = dict(TINY if device == "cpu" else {"1b": LLAMA_1B, "8b": LLAMA_8B}[model])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(0)
    with torch.device(device):
        drawn = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    drawn.save_pretrained(target)
    del drawn
    if device == "cuda":
        torch.cuda.empty_cache()
    return target


def settings(job: Job, folder: Path, start: Path, tiny: bool) -> list[str]:
    corpus = folder / job.corpus
    chosen = [
        "name=bench",
        "data=alpaca",
        f"data.prepared={corpus}",
        f"data.seq_len={SEQ_LEN[job.corpus]}",
        "data.stop.epochs=1000",
        f"model.tokenizer={corpus / 'tokenizer'}",
        f"model.path={start}",
        "zero=0" if tiny else "zero=1",
        f"batch.global_size={2 if tiny else job.rows}",
        f"batch.micro_size={1 if tiny else job.micro}",
        "schedule=constant",
        "schedule.warmup_fraction=null",
        "optim.lr=1e-4",
        "tracker.wandb=disabled",
        "attention=packed",
        *job.overrides,
    ]
    return [*chosen, "model.dtype=fp32", "compute.kernels=none"] if tiny else chosen


def assembled(job: Job, folder: Path, start: Path, tiny: bool) -> Any:
    from conf.compose import compose
    from data_prep.prepared import open_prepared
    from train.assembly import assemble
    from train.distributed import ranks_from_environment
    from train.engine import init_distributed
    from train.run_dir import claim
    from train.state import TrainState

    run_dir = folder / "runs" / f"{time.time_ns()}"
    cfg = compose([*settings(job, folder, start, tiny), f"run_dir={run_dir}"])
    ranks = ranks_from_environment()
    claim(run_dir)
    init_distributed(ranks)
    return assemble(cfg, run_dir, ranks, 0, open_prepared(cfg), TrainState())


def updates(run: Any, variant: str, most: int) -> Iterator[Update]:
    """Updates of one variant over the run's own plan, from its beginning: ``most`` or more."""
    from data_prep.stream import Stream
    from train.flops import step_flops
    from train.models import family
    from train.recompute import set_recompute

    cfg = run.cfg
    if variant == "no-sharing":
        cfg = replace(cfg, data=replace(cfg.data, share_prefix=False))
    if variant == "no-targets-head":
        cfg = replace(cfg, compute=replace(cfg.compute, targets_only_head=False))
    splits = run.corpus.split("train")
    stream = Stream(splits, cfg.data, seed=cfg.seed, global_size=cfg.batch.global_size, max_steps=0)
    block = family(run.model_config["model_type"]).block_class
    own = replace(run, cfg=cfg, stream=stream, splits=[splits[name] for name in stream.names])
    reports = bare(own, most) if variant == "bare" else production(own)
    while True:
        if variant == "recompute":
            set_recompute(run.engine.module, "full", block_class=block)
        began = time.perf_counter()
        plan, loss = next(reports)
        if run.ranks.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        if variant == "recompute":
            set_recompute(run.engine.module, cfg.model.recompute, block_class=block)
        flops = step_flops(run.model_config, plan, cfg)
        yield Update(seconds, loss, plan.samples, plan.tokens, plan.targets, flops)


def production(run: Any) -> Iterator[tuple[Any, float]]:
    """The loop of ``python -m train``: plan, collate, step, ledger, metrics."""
    from train.main import record, steps
    from train.metrics import count
    from train.preempt import StopRequest

    for report in steps(run, StopRequest()):
        count(run.state, report, run.stream.names)
        record(run, report)
        yield report.plan, report.loss


def bare(run: Any, updates: int) -> Iterator[tuple[Any, float]]:
    """The same engine over the tensors of so many updates, which are there already, and nothing else."""
    from data_prep.stream import rank_rows
    from train.batch import collate
    from train.loop import micro_batches
    from train.loss import loss_sums
    from train.plan import accumulation_steps, number

    make = partial(collate, layout="flat", pad_id=run.tokenizer.pad_id, device=run.ranks.device)
    micro, count = number(run.cfg.batch.micro_size), accumulation_steps(run.cfg.batch, run.ranks.world)
    ready = [
        (plan, [make(rows, run.splits) for rows in micro_batches(rank_rows(plan, 0, 1), micro, count)])
        for plan, _ in zip(run.stream, range(updates), strict=False)
    ]
    run.engine.module.train()
    for plan, batches in ready:
        total = torch.zeros((), device=run.ranks.device)
        for number_, batch in enumerate(batches):
            sums = loss_sums(run.engine.module, batch, targets_only=True, loss=run.cfg.loss)
            run.engine.accumulate(sums.objective / plan.targets, last=number_ == len(batches) - 1)
            total += sums.nll
        run.engine.step(run.cfg.optim.lr)
        yield plan, float(total) / plan.targets


def profile(turn: Iterator[Update], folder: Path, name: str, device: str) -> None:
    """Where the time of one update goes, kernel by kernel: FOLDER/profiles/NAME.txt."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with watch(activities=activities) as watched:
        next(turn)
    order = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    (folder / "profiles").mkdir(exist_ok=True)
    table = watched.key_averages().table(sort_by=order, row_limit=60, max_name_column_width=90)
    (folder / "profiles" / f"{name}.txt").write_text(table)


def planned_gib(run: Any) -> float:
    """What ``plan`` says of the allocated memory at its peak."""
    from train.plan import corpus_of, plan

    found = plan(run.cfg, run.model_config, corpus_of(run.cfg)).chosen
    return float((found.device - found.context - found.fragmentation) / 2**30)


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3])
