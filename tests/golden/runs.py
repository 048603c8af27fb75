"""Four runs of ten steps on shipped rows, and their losses and ledger digests, which are pinned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.end_to_end.commands import call, lines, tiny_run, train

STEPS = 10
SHIPPED = "data_prep/demo/words.jsonl.gz"
"""From the repository's root, wherever that lies, because the path is part of a sample's uid."""


@dataclass(frozen=True)
class Run:
    """A run of ``STEPS`` updates, by what it adds to the arguments of a tiny run."""

    world: int
    arguments: Sequence[str]
    tolerance: float
    """Largest allowed relative difference of a loss; ``tests.test_golden`` says why."""


RUNS: Mapping[str, Run] = {
    "full, fp32, ZeRO-2, 2 ranks": Run(2, ["zero=2", "data.share_prefix=false"], 1e-5),
    "full, fp32, ZeRO-2, 2 ranks, shared prefixes": Run(2, ["zero=2", "data.share_prefix=true"], 1e-5),
    "LoRA, fp32, ZeRO-3, 2 ranks, label smoothing, z-loss": Run(
        2,
        ["zero=3", "zero.persistence_threshold=0", "tuning=lora", "loss.label_smoothing=0.1", "loss.z_loss=1e-3"],
        1e-5,
    ),
    "full, bf16, ZeRO-1, 1 rank, shared prefixes": Run(
        1, ["zero=1", "model.dtype=bf16", "data.share_prefix=true", "model.recompute=selective"], 2e-3
    ),
}
"""Every run reads one corpus: Alpaca's template, so that the samples of a row have a prefix to share."""


def record(folder: Path, name: str) -> dict[str, Any]:
    """Runs ``name`` from nothing with its corpus and run_dir in ``folder``: losses and ledger digests, step by step."""
    run = RUNS[name]
    arguments = tiny_run(
        folder,
        name.replace(", ", "-").replace(" ", "_").lower(),
        f"data.sources.words.path={SHIPPED}",
        "data.sources.words.rows=600",
        "data.sources.words.template=alpaca",
        "data.seq_len=256",
        f"schedule.max_steps={STEPS}",
        "schedule.warmup_fraction=0.2",
        "evaluation=skip",
        *run.arguments,
    )
    if not (folder / "corpus" / "MANIFEST.json").exists():
        code, output = call("data_prep", *arguments)
        assert code == 0, output
    code, output = train(run.world, *arguments)
    assert code == 0, output
    run_dir = Path(next(word for word in arguments if word.startswith("run_dir=")).removeprefix("run_dir="))
    steps = [line for line in lines(run_dir / "metrics.jsonl") if "train/loss" in line]
    ledger = lines(run_dir / "ledger.jsonl")
    assert len(steps) == len(ledger) == STEPS
    return {
        "losses": [line["train/loss"] for line in steps],
        "ledger": [line["digest"] for line in ledger],
    }
