"""``python -m train.verify experiment=NAME``: the proof that a step does not depend on how the batch is cut up.

On a shrunken copy of the configured model (same family, attention, tying, tuning), on the first rows of the prepared
corpus, with the configured ZeRO stage: gradients of one rank, two ranks, accumulated, packed and unpacked, against
plain torch sample by sample. fp32, on the CPU, in about a minute. Exit code 0 only if all are equal.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from conf.compose import config_from_argv
from conf.errors import leave_with_code
from conf.schema import ModelConfig, RunConfig
from data_prep.identity import corpus_path, prepare_command
from data_prep.shards import open_corpus
from data_prep.tokenizer import load
from train.plan import settle
from train.proof import Case, Gradients, Proof, reference_gradients, run_cases
from train.shrink import shrunken

ROWS = 5
"""Odd, so that two ranks and accumulation leave empty slots."""
ALLOWED = 1e-6
"""Largest relative difference per tensor: fp32 rounding over a few thousand summed tokens stays well below."""


def cases(pack: str) -> list[Case]:
    """What is compared with the reference."""
    found = [
        Case("1 rank, one micro-batch", 1, ROWS, "none" if pack == "none" else "exact"),
        Case("1 rank, accumulated", 1, 1, "none" if pack == "none" else "exact"),
        Case("2 ranks, empty slots", 2, ROWS, "none" if pack == "none" else "exact"),
        Case("2 ranks, accumulated", 2, 1, "none" if pack == "none" else "exact"),
    ]
    if pack == "exact":
        found += [Case("1 rank, unpacked", 1, 4, "none"), Case("2 ranks, unpacked", 2, 4, "none")]
    return found


def small_run(cfg: RunConfig, run_dir: Path) -> RunConfig:
    """``cfg`` with a shrunken random model in fp32; everything that could hide an error is made as hard as possible."""
    model = ModelConfig(
        config=shrunken(cfg.model), init="random", dtype="fp32", recompute=cfg.model.recompute, tokenizer="train"
    )
    zero = replace(cfg.zero, persistence_threshold=0)
    batch = replace(cfg.batch, global_size=ROWS, micro_size=1)
    return replace(cfg, model=model, zero=zero, batch=batch, run_dir=str(run_dir))


def worst(found: Gradients, wanted: Gradients) -> tuple[float, str]:
    """Largest relative difference, norm of the difference over the norm, and the tensor it is in."""
    missing = sorted({*found} ^ {*wanted})
    if missing:
        return float("inf"), missing[0]
    scale = max(float(value.norm()) for value in wanted.values())
    errors = {
        # A tensor whose exact gradient is zero (LoRA's A before the first step) is compared with the largest norm.
        name: float((found[name] - value).norm()) / (float(value.norm()) or scale)
        for name, value in wanted.items()
    }
    name = max(errors, key=errors.__getitem__)
    return errors[name], name


def verify(cfg: RunConfig, argv: Sequence[str]) -> bool:
    """Print the table of comparisons and the verdict. ``argv``: the overrides ``cfg`` was composed of."""
    os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    corpus = open_corpus(corpus_path(cfg), hint=prepare_command(cfg, argv))
    tokenizer = load(str(corpus.path / "tokenizer"))
    with tempfile.TemporaryDirectory(prefix="corral-verify-") as folder:
        proof = Proof(
            cfg=small_run(cfg, Path(folder)),
            corpus=corpus.path,
            pad_id=tokenizer.pad_id,
            eos_id=tokenizer.eos_id,
            vocab_size=tokenizer.vocab_size,
        )
        wanted = reference_gradients(proof)
        targets = proof.plan("none")[1].targets
        results = run_cases(proof, cases(cfg.data.pack), Path(folder))
    table = Table(title=f"{cfg.name}: gradients of one global batch against plain torch, sample by sample")
    for column in ("cut up as", "worst relative difference", "in", "targets", "verdict"):
        table.add_column(column)
    right = True
    for case, (gradients, fed) in results.items():
        error, name = worst(gradients, wanted)
        holds = error <= ALLOWED and fed == targets
        right &= holds
        table.add_row(case.label, f"{error:.1e}", name, f"{fed}/{targets}", "equal" if holds else "DIFFERENT")
    Console(width=120 if not sys.stdout.isatty() else None).print(table)
    verdict = "holds: a step is one function of the global batch" if right else "DOES NOT HOLD"
    print(f"exact step {verdict} (ZeRO {cfg.zero.stage}, {cfg.tuning.method}, allowed {ALLOWED:.0e})")
    return right


def main() -> int:
    cfg, _ = config_from_argv(sys.argv[1:], command="python -m train.verify")
    cfg = settle(cfg, nodes=cfg.cluster.nodes, per_node=cfg.cluster.gpus_per_node)
    torch.manual_seed(0)
    return 0 if verify(cfg, sys.argv[1:]) else 1


if __name__ == "__main__":
    leave_with_code(main)
