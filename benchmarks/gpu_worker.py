"""One process of ``make bench-gpu``: ``python -m benchmarks.gpu_worker JOB FOLDER DEVICE``.

It builds the parts of a run once, as ``python -m train`` does. The variants take turns of a few updates, A B C A B C,
over the same steps. FOLDER/results/JOB.json gets the seconds, the loss and the computed work of every timed update;
FOLDER/profiles/JOB.txt gets the kernels of one more update. The process waits for the device after every update.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_jobs import JOBS, LLAMA_1B, LLAMA_3B, LLAMA_8B, TINY, Job

WARM_UP, ROUNDS, TURN = (2, 3, 2) if torch.cuda.is_available() else (1, 1, 1)
"""Updates of each variant without timing; turns; updates per turn."""
SEQ_LEN = {"alpaca": 2048, "flan": 2048, "documents": 8192, "long-documents": 32768}
METRICS = ("perf/compiled_calls", "memory/reserved_gib", "memory/alloc_retries")
"""Of the run's own metrics, the last ones are kept beside what is measured here."""


@dataclass(frozen=True)
class Update:
    seconds: float
    loss: float
    samples: int
    tokens: int
    """Tokens of the samples with their prefixes; padding and sharing do not change this number."""
    targets: int
    flops: float
    """Executed matrix FLOPs without recomputation."""


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
    if production_loop := turns.get("corral") or turns.get("evaluated"):
        profile(production_loop, folder, name, device)
    result = {
        "versions": versions(device),
        "first_step_s": first,
        "planned_gib": planned_gib(run),
        "metrics": last_metrics(run),
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
    (results / f".{name}").write_text(json.dumps(result), encoding="utf-8")
    (results / f".{name}").rename(results / f"{name}.json")


def versions(device: str) -> dict[str, str]:
    from importlib.metadata import version

    card = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    return {"device": card} | {each: version(each) for each in ("torch", "transformers", "deepspeed", "peft")}


def random_start(model: str, folder: Path, device: str) -> Path:
    """Random weights of the model's shape, drawn on the device, because 8 billion on a CPU take minutes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    target = folder / f"init-{model}"
    if (target / "config.json").is_file():
        return target
    values = dict(TINY if device == "cpu" else {"1b": LLAMA_1B, "3b": LLAMA_3B, "8b": LLAMA_8B}[model])
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
        *(["data=flan_mini", "data.stop.first_exhausted=null"] if job.corpus == "flan" else ["data=alpaca"]),
        f"data.prepared={corpus}",
        f"data.seq_len={SEQ_LEN[job.corpus]}",
        "data.stop.epochs=1000",
        f"model.tokenizer={corpus / 'tokenizer'}",
        f"model.path={start}",
        *([] if any(each.startswith("zero=") for each in job.overrides) else ["zero=0" if tiny else "zero=1"]),
        f"batch.global_size={2 if tiny else job.rows}",
        f"batch.micro_size={1 if tiny else job.micro}",
        "schedule=constant",
        "schedule.warmup_fraction=null",
        "optim.lr=1e-4",
        "tracker.wandb=disabled",
        *([] if any(each.startswith("attention=") for each in job.overrides) else ["attention=packed"]),
        *job.overrides,
    ]
    return [*chosen, "model.dtype=fp32", "compute.kernels=none"] if tiny else chosen


def assembled(job: Job, folder: Path, start: Path, tiny: bool) -> Any:
    from conf.compose import compose
    from data_prep.corpus.prepared import open_prepared
    from train.assembly import assemble
    from train.engine import init_distributed
    from train.process.run_dir import claim
    from train.ranks.group import on_device, ranks_from_environment
    from train.state import TrainState

    run_dir = folder / "runs" / f"{time.time_ns()}"
    cfg = compose([*settings(job, folder, start, tiny), f"run_dir={run_dir}"])
    ranks = on_device(ranks_from_environment())
    claim(run_dir, 0)
    ranks = init_distributed(ranks)
    return assemble(cfg, run_dir, ranks, 0, open_prepared(cfg), TrainState())


def updates(run: Any, variant: str, most: int) -> Iterator[Update]:
    """Updates of one variant over the run's steps, from the first step: ``most`` or more."""
    from data_prep.stream.stream import Stream
    from train.families import family
    from train.model.recompute import set_recompute
    from train.objectives import objective_of
    from train.tracking.flops import step_flops

    cfg = run.cfg
    if variant == "no-sharing":
        cfg = replace(cfg, data=replace(cfg.data, share_prefix=False))
    if variant == "no-targets-head":
        cfg = replace(cfg, compute=replace(cfg.compute, targets_only_head=False))
    splits = run.corpus.split("train")
    stream = Stream(splits, cfg.data, seed=cfg.seed, global_size=cfg.batch.global_size, max_steps=0)
    block = family(run.model_config["model_type"]).block_class
    feed = replace(run.feed, splits=[splits[name] for name in stream.names])
    own = replace(run, cfg=cfg, stream=stream, feed=feed, objective=objective_of(cfg, None))
    if variant == "evaluated":
        evaluate(own)
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


def evaluate(run: Any) -> None:
    """Loss and answers of held-out samples, as ``evaluation.at_start`` has them before the first step."""
    from train.evaluate.evaluation import evaluate_all

    evaluate_all(
        run.engine.module, run.corpus, run.cfg, tokenizer=run.tokenizer, attention=run.attention, ranks=run.ranks
    )


def production(run: Any) -> Iterator[tuple[Any, float]]:
    """The loop of ``python -m train``: plan, collate, step, ledger, metrics."""
    from train.guard.guard import Guard
    from train.main import record, steps
    from train.process.preempt import StopRequest
    from train.recording import Saving
    from train.tracking.metrics import count

    saving = Saving(run)
    for report in steps(run, saving, StopRequest(), Guard(run, saving)):
        count(run.state, report, run.stream.names)
        record(run, report)
        yield report.plan, report.loss


def bare(run: Any, updates: int) -> Iterator[tuple[Any, float]]:
    """Only the same engine on the ready tensors of ``updates`` updates."""
    ready = [(plan, list(run.feed.batches(plan))) for plan, _ in zip(run.stream, range(updates), strict=False)]
    run.engine.module.train()
    for plan, batches in ready:
        total = torch.zeros((), device=run.ranks.device)
        for number, batch in enumerate(batches):
            sums = run.objective.sums(run.engine.module, batch)
            run.engine.accumulate(sums.objective / plan.targets, last=number == len(batches) - 1)
            total += sums.reported["loss"]
        run.engine.step(run.cfg.optim.lr)
        yield plan, float(total) / plan.targets


def profile(turn: Iterator[Update], folder: Path, name: str, device: str) -> None:
    """Write the time of one update by kernel to FOLDER/profiles/NAME.txt."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with watch(activities=activities) as watched:
        next(turn)
    order = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    (folder / "profiles").mkdir(exist_ok=True)
    table = watched.key_averages().table(sort_by=order, row_limit=60, max_name_column_width=90)
    (folder / "profiles" / f"{name}.txt").write_text(table, encoding="utf-8")


def last_metrics(run: Any) -> dict[str, float]:
    """The last value of each of METRICS that the run has logged."""
    run.tracker.sync()
    lines = (run.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    return {key: each[key] for each in logged for key in METRICS if each.get(key) is not None}


def planned_gib(run: Any) -> float:
    """The peak of allocated memory that ``plan`` predicts, GiB."""
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
