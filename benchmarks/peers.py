"""Runs one competitor of the training benchmark in a separate process: ``python benchmarks/peers.py NAME FOLDER``.

Every competitor trains the model in FOLDER/init in one process, with the same samples of FOLDER/corpus in every update
and the same AdamW and clipping: on a CPU with all cores in fp32, on a GPU (CORRAL_BENCH_DEVICE=cuda) in bf16 with fp32
weights. FOLDER/NAME.json gets the end time and the loss of every update.

corral      the loop of a normal run: packed, targets-only head, shared prefixes, ledger and metrics written
bare        only corral's model and engine on ready tensors
hf          transformers.Trainer, micro-batches of 8 samples padded to the longest
trl         trl.SFTTrainer with its defaults (padded, recomputation), micro-batches of 8
trl-packed  trl.SFTTrainer, padding-free on corral's packed rows, without recomputation: its best way without leaks
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

ON_GPU = os.environ.get("CORRAL_BENCH_DEVICE") == "cuda"
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
if not ON_GPU:
    os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
sys.path.insert(0, str(Path(__file__).parents[1]))

LR, BETAS, EPS, CLIP = 1e-4, (0.9, 0.95), 1e-8, 1.0

Update = list[list[list[int]]]
"""Micro-batches of (source, row) pairs: the samples of one optimizer step."""


Step = tuple[float, float]
"""The end time of an update (``time.perf_counter``) and its loss."""


def main(name: str, folder: Path) -> None:
    began = time.perf_counter()
    work: dict[str, Callable[[Path], Iterable[Step]]] = {"corral": corral, "bare": bare}
    steps = [(at - began, loss) for at, loss in work.get(name, partial(trainer, name))(folder)]
    peak = peak_gib()
    found = {"ends": [at for at, _ in steps], "losses": [loss for _, loss in steps], "peak_gib": peak}
    (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)  # gloo's threads may abort the interpreter's exit


def peak_gib() -> float:
    """Peak memory so far, GiB: allocated on the GPU; without a GPU, resident on the host."""
    if ON_GPU:
        import torch

        return float(torch.cuda.max_memory_allocated() / 2**30)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def assembled(folder: Path, name: str, *more: str) -> Any:
    """The parts of a run with the settings in FOLDER/arguments.json and ``more``."""
    from conf.compose import compose
    from data_prep.corpus.prepared import open_prepared
    from train.assembly import assemble
    from train.engine import init_distributed
    from train.process.run_dir import claim
    from train.ranks.group import on_device, ranks_from_environment
    from train.state import TrainState

    arguments = json.loads((folder / "arguments.json").read_text(encoding="utf-8"))
    cfg = compose([*arguments, *more, f"run_dir={folder / f'run-{name}-{time.time_ns()}'}"])
    ranks = on_device(ranks_from_environment())
    claim(Path(cfg.run_dir), 0)
    ranks = init_distributed(ranks)
    return assemble(cfg, Path(cfg.run_dir), ranks, 0, open_prepared(cfg), TrainState())


def corral(folder: Path) -> Iterator[Step]:
    """The production loop: plan, collate, step, ledger, metrics."""
    from train.guard.guard import Guard
    from train.main import record, steps
    from train.process.preempt import StopRequest
    from train.recording import Saving
    from train.tracking.metrics import count as add_up

    run = assembled(folder, "corral")
    saving = Saving(run)
    for report in steps(run, saving, StopRequest(), Guard(run, saving)):
        add_up(run.state, report, run.stream.names)
        record(run, report)
        yield time.perf_counter(), report.loss


def bare(folder: Path) -> Iterator[Step]:
    """The same engine on ready tensors."""
    from train.objectives.sft import token_nll_sum

    run = assembled(folder, "bare")
    ready = [(plan.targets, list(run.feed.batches(plan))) for plan in run.stream]
    run.engine.module.train()
    for targets, batches in ready:
        total = 0.0
        for number, batch in enumerate(batches):
            nll = token_nll_sum(run.engine.module, batch, targets_only=True)
            run.engine.accumulate(nll / targets, last=number == len(batches) - 1)
            total += float(nll.detach())
        run.engine.step(LR)
        yield time.perf_counter(), total / targets


def micro_batches(updates: list[Update]) -> list[list[list[int]]]:
    """Indices into the list of all samples, update by update, micro-batch by micro-batch."""
    indices = count()
    return [[[next(indices) for _ in row] for row in rows] for rows in updates]


def examples(folder: Path, updates: list[Update]) -> list[dict[str, list[int]]]:
    """All samples in order, in the form that transformers takes."""
    from data_prep.corpus.shards import open_corpus
    from train.batches.batch import IGNORE

    (split,) = open_corpus(folder / "corpus", verify="sizes").split("train").values()
    found = []
    for row in (row for rows in updates for packed_row in rows for _, row in packed_row):
        ids, mask = (each.tolist() for each in split.tokens(row))
        labels = [token if target else IGNORE for token, target in zip(ids, mask, strict=True)]
        found.append({"input_ids": ids, "labels": [IGNORE, *labels[1:]]})
    return found


def trainer(name: str, folder: Path) -> list[Step]:
    """The trainer of transformers or TRL, with corral's samples in every update."""
    import torch
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    torch.set_num_threads(os.cpu_count() or 1)
    updates = json.loads(
        (folder / ("packed.json" if name == "trl-packed" else "padded.json")).read_text(encoding="utf-8")
    )
    model = AutoModelForCausalLM.from_pretrained(folder / "init", dtype=torch.float32, attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(folder / "corpus" / "tokenizer")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    steps: list[Step] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                steps.append((time.perf_counter(), float(logs["loss"])))

    made = made_trainer(name, model, tokenizer, examples(folder, updates), updates, folder)
    made.add_callback(Watch())
    order = [micro for update in micro_batches(updates) for micro in update]
    loader = DataLoader(made.train_dataset, batch_sampler=order, collate_fn=made.data_collator)
    made.get_train_dataloader = lambda: loader
    made.train()
    return steps


def made_trainer(
    name: str, model: Any, tokenizer: Any, rows: list[dict[str, list[int]]], updates: list[Update], folder: Path
) -> Any:
    """The peer with its defaults, except for the settings that all competitors share."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    common = {
        "output_dir": str(folder / f"{name}-{time.time_ns()}"),
        "max_steps": len(updates),
        "gradient_accumulation_steps": len(updates[0]),
        "per_device_train_batch_size": max(len(row) for rows_ in updates for row in rows_),
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "adam_epsilon": EPS,
        "max_grad_norm": CLIP,
        "weight_decay": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": not ON_GPU,
        "disable_tqdm": True,
        "bf16": ON_GPU,
    }
    data = Dataset.from_list(rows)
    if name == "hf":
        collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
        arguments = TrainingArguments(**common, remove_unused_columns=False)
        return Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator)
    from trl import SFTConfig, SFTTrainer

    best = {"padding_free": True, "gradient_checkpointing": False, "max_length": None} if name == "trl-packed" else {}
    return SFTTrainer(model=model, args=SFTConfig(**common, **best), train_dataset=data, processing_class=tokenizer)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
