"""Every tuning method on real Alpaca rows with a real small model: trained on two ranks, evaluated, exported, asked."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.compose import compose
from conf.errors import ConfigError
from data_prep.corpus.identity import corpus_path
from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from data_prep.rows.conversation import Message
from tests.distributed import run_distributed
from tests.end_to_end.commands import lines
from train.assembly import assemble
from train.chat.speaker import open_speaker
from train.checkpoint.reopen import reopen
from train.evaluate.evaluation import evaluate_all
from train.export.exported import load_model
from train.export.folder import export
from train.main import drain
from train.process.preempt import StopRequest
from train.ranks.group import Ranks
from train.state import TrainState

METHODS = {
    "freeze": ["tuning=full", "tuning.freeze=[embed_tokens,'layers.[0-2]']", "optim.lr=3e-3"],
    "dora": ["tuning=lora", "tuning.variant=dora", "tuning.rank=4", "optim.lr=1e-2"],
    "whole": ["tuning=lora", "tuning.scaling=sqrt_rank", "tuning.modules_to_save=[embed_tokens]", "optim.lr=3e-3"],
    "ia3": ["tuning=ia3", "optim.lr=3e-2"],
    "prompt": ["tuning=prompt", "data.pack=none", "optim.lr=3e-2"],
    "prefix": ["tuning=prefix", "data.pack=none", "optim.lr=3e-2"],
    "bottleneck": ["tuning=bottleneck", "tuning.placement=houlsby", "tuning.size=16", "optim.lr=1e-2"],
}
APART = ("prompt", "prefix", "bottleneck")
"""Exported without the base, because no weight can stand for them."""


def overrides(root: Path, base: Path, name: str, stage: int) -> list[str]:
    return [
        f"name={name}-{stage}", f"run_dir={root}/{name}-{stage}",
        "data=alpaca", f"data.sources.alpaca.path={root}/alpaca.json", "data.sources.alpaca.validation_fraction=0.2",
        "data.seq_len=192", "data.bad_row_budget=1.0", f"data.prepared={root}/corpus",
        f"model.path={base}", "model.dtype=fp32", f"zero={stage}", "zero.persistence_threshold=0",
        "batch.global_size=8", "batch.micro_size=4", "schedule.kind=constant", "schedule.max_steps=6",
        "evaluation.at_start=true", "evaluation.max_rows=16", "evaluation.generate_rows=1",
        "evaluation.max_new_tokens=4", "tracker.wandb=disabled", *METHODS[name],
    ]  # fmt: skip


def train_all(ranks: Ranks, runs: Sequence[list[str]]) -> None:
    """Each run as ``train.main`` does it, in one process group."""
    for arguments in runs:
        cfg = compose(arguments)
        run = assemble(cfg, Path(cfg.run_dir), ranks, 0, open_corpus(corpus_path(cfg)), TrainState())
        drain(run, StopRequest())
        run.tracker.close(0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_method_learns_and_is_exported(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    with gzip.open(real_data("alpaca/alpaca_data.json.gz"), "rt") as file:
        rows = [row for row in json.load(file)[:2000] if len(row["output"]) + len(row["input"]) < 60][:300]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    base = real_data("weights/stories260K/hf")
    runs = [overrides(tmp_path, base, name, 2 + index % 2) for index, name in enumerate(METHODS)]
    prepare(compose(runs[0]), argv=[])
    run_distributed(train_all, 2, runs, timeout=400)
    for arguments, name in zip(runs, METHODS, strict=True):
        check(Path(compose(arguments).run_dir), name)


def check(run_dir: Path, name: str) -> None:
    """Held-out loss fell; the checkpoint and the export compute what the run's own evaluation did."""
    curve = [line["eval/loss"] for line in lines(run_dir / "metrics.jsonl") if "eval/loss" in line]
    assert curve[-1] < curve[0] - 0.02, (name, curve)
    run = reopen(run_dir)
    found, _ = evaluate_all(
        run.model, run.corpus, run.cfg, tokenizer=run.tokenizer, attention=run.attention, ranks=run.ranks
    )
    assert math.isclose(found["eval/loss"], curve[-1], rel_tol=1e-5), name
    if name in APART:
        with pytest.raises(ConfigError, match="use merge=false"):
            export(run_dir)
    folder = export(run_dir, merge=name not in APART)
    expected = asked(run.model, run.attention.layout)
    torch.testing.assert_close(asked(load_model(folder).eval(), "padded"), expected, atol=1e-3, rtol=0, msg=name)
    speaker = open_speaker(folder, max_new_tokens=6, temperature=0.0)
    assert speaker.answer([Message("user", "Name a colour.")]) is not None
    if name in ("dora", "whole", "ia3"):
        apart = load_model(export(run_dir, merge=False)).eval()
        torch.testing.assert_close(asked(apart, "padded"), expected, atol=1e-3, rtol=0, msg=name)


def asked(model: Any, layout: str) -> torch.Tensor:
    """Logits of one row."""
    ids = torch.arange(5, 25)[None]
    bounds = torch.tensor([0, 20], dtype=torch.int32)
    flat = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 20, "max_length_k": 20}
    mask = {"attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **(flat if layout == "flat" else mask)).logits  # type: ignore[no-any-return]
