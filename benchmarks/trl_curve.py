"""Compares losses of TRL's SFTTrainer and of Corral with a plain loop's: ``python -m benchmarks.trl_curve``; no GPU.

All train fifty steps of fp32 AdamW on 2,000 Alpaca records (``curve.py``), with the same samples in every update. TRL
makes its own labels, rows, positions and denominator from them. The command prints the relative difference from the
plain loop of the first loss, and the largest difference. Needs CORRAL_TEST_DATA and ``pip install -c constraints.txt -e
.[bench]``; takes five minutes on two idle cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.curve import BETAS, CLIP, DECAY, EPS, LR, SEQ_LEN, Sample, overrides, plain_losses, updates
from conf.compose import compose
from data_prep.prepare import prepare

ROOT = Path(__file__).resolve().parents[1]
PARTS = 4
"""Micro-batches per update on all ranks together."""
TIMEOUT_S = 600.0
RIGHT = 1e-4
"""Largest relative difference at which a curve counts as equal to the plain loop's."""


@dataclass(frozen=True)
class Way:
    """One way to run TRL."""

    title: str
    ranks: int = 1
    packing: str | None = None
    """``packing_strategy``; None: one sample per row, padded."""
    zero: int | None = None
    """DeepSpeed's stage; None: DDP."""


WAYS = {
    "padded": Way("TRL, padded, accumulated"),
    "ranks": Way("TRL, padded, accumulated, 2 ranks", ranks=2),
    "zero": Way("TRL, padded, accumulated, 2 ranks, ZeRO-2", ranks=2, zero=2),
    "bfd": Way("TRL, packing (bfd), accumulated", packing="bfd"),
    "wrapped": Way("TRL, packing (wrapped), accumulated", packing="wrapped"),
}
DEEPSPEED = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}


def rows_of(samples: list[Sample], packing: str | None) -> list[dict[str, Any]]:
    """TRL's rows for the samples of one update; padded rows also get their labels from TRL."""
    if packing is None:
        return [{"input_ids": sample.ids, "completion_mask": sample.mask} for sample in samples]
    from datasets import Dataset
    from trl import pack_dataset

    labelled = [{"input_ids": sample.ids, "labels": sample.labels} for sample in samples]
    return list(pack_dataset(Dataset.from_list(labelled), SEQ_LEN, packing))


def follow(way: Way, model: str, steps: list[list[Sample]], output: Path) -> list[float]:
    """The losses that TRL logs; this rank takes its share of the micro-batches of every update."""
    import torch
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rank, world = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    rows = [rows_of(samples, way.packing) for samples in steps]
    number = count()
    places = [[next(number) for _ in each] for each in rows]
    mine = [each[part::PARTS] for each in places for part in range(rank, PARTS, world)]
    labels = {"dataset_kwargs": {"skip_prepare_dataset": True}} if way.packing else {"completion_only_loss": True}
    made = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa"),
        args=SFTConfig(
            output_dir=str(output),
            max_steps=len(steps),
            gradient_accumulation_steps=PARTS // world,
            per_device_train_batch_size=max(map(len, mine)),
            packing=way.packing is not None,
            packing_strategy=way.packing or "bfd",
            deepspeed=DEEPSPEED | {"zero_optimization": {"stage": way.zero}} if way.zero else None,
            learning_rate=LR,
            weight_decay=DECAY,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            adam_epsilon=EPS,
            max_grad_norm=CLIP,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            **labels,
        ),
        train_dataset=Dataset.from_list([row for each in rows for row in each]),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    loader = DataLoader(made.train_dataset, batch_sampler=mine, collate_fn=made.data_collator)
    made.get_train_dataloader = lambda: loader
    made.train()
    return [line["loss"] for line in made.state.log_history if "loss" in line]


def process(folder: Path, ranks: int, *arguments: str) -> None:
    """Run ``torchrun`` on this machine; show its output only if it fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command,
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        encoding="utf-8",
    )
    if done.returncode:
        sys.exit(f"corral: {' '.join(arguments[:3])} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


@dataclass(frozen=True)
class Course:
    """The data and the reference that all runs share."""

    folder: Path
    model: Path
    arguments: list[str]
    """The overrides of Corral's run."""
    wanted: list[float]
    """The plain loop's losses."""

    def trl(self, name: str) -> list[float]:
        """TRL's losses, from one new process per rank."""
        process(self.folder, WAYS[name].ranks, "-m", "benchmarks.trl_curve", name)
        return list(json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8")))

    def corral(self) -> list[float]:
        """The losses of a normal run on two ranks."""
        process(self.folder, 2, "-m", "train", *self.arguments)
        found = [
            json.loads(line)
            for line in (self.folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        return [line["train/loss"] for line in found if "train/loss" in line]


def lay_out(model: Path, alpaca: Path, folder: Path) -> Course:
    """Write the corpus and the arguments to ``folder``; compute the plain loop's losses."""
    arguments = overrides(model, alpaca, folder)
    cfg = compose(arguments)
    prepare(cfg, argv=arguments)
    (folder / "arguments.json").write_text(json.dumps(arguments), encoding="utf-8")
    return Course(folder, model, arguments, plain_losses(cfg, folder / "corpus"))


def apart(found: list[float], wanted: list[float]) -> float:
    """The largest relative difference of a loss."""
    return max(abs(one - other) / other for one, other in zip(found, wanted, strict=True))


def one_rank(name: str, folder: Path) -> None:
    """Train on one rank, for ``Course.trl``; rank 0 writes the losses."""
    cfg = compose(json.loads((folder / "arguments.json").read_text(encoding="utf-8")))
    steps = [samples for _, samples in updates(cfg, folder / "corpus")]
    losses = follow(WAYS[name], str(cfg.model.path), steps, folder / "trl")
    if os.environ["RANK"] == "0":
        (folder / f"{name}.json").write_text(json.dumps(losses), encoding="utf-8")


def main() -> int:
    if len(sys.argv) > 1:
        one_rank(sys.argv[1], Path.cwd())
        return 0
    root = os.environ.get("CORRAL_TEST_DATA") or sys.exit("corral: set CORRAL_TEST_DATA to the folder of the data")
    data = Path(root).resolve()
    with tempfile.TemporaryDirectory(prefix="corral-curve-") as name:
        course = lay_out(data / "weights/stories260K/hf", data / "alpaca/alpaca_data.json.gz", Path(name))
        wanted = course.wanted
        print(f"{'plain loop':45} {len(wanted)} losses from {wanted[0]:.4f} to {wanted[-1]:.4f}", flush=True)
        ways: dict[str, Callable[[], list[float]]] = {"Corral, packed, 2 ranks, ZeRO-2": course.corral}
        ways |= {way.title: partial(course.trl, key) for key, way in WAYS.items()}
        for title, run in ways.items():
            found = run()
            first, worst = apart(found[:1], wanted[:1]), apart(found, wanted)
            verdict = "equal" if worst <= RIGHT else "DIFFERENT"
            print(f"{title:45} first {first:.1e}  worst {worst:.1e}  {verdict}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
