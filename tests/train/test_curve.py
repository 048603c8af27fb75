"""A run on real rows against the loop anyone would write: transformers' own loss, torch's AdamW, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from conf.compose import compose
from conf.schema import RunConfig
from data_prep.shards import open_corpus
from data_prep.stream import Stream
from tests.end_to_end.commands import call, lines, train

STEPS = 50


def overrides(model: Path, alpaca: Path, folder: Path) -> list[str]:
    return [
        "name=curve",
        f"run_dir={folder / 'run'}",
        f"model.path={model}",
        "model.dtype=fp32",
        "data=alpaca",
        f"data.sources.alpaca.path={alpaca}",
        "data.sources.alpaca.rows=2000",
        "data.seq_len=512",
        "data.bad_row_budget=0.5",  # 512 tokens of a vocabulary of 512 are short for an Alpaca row
        f"data.prepared={folder / 'corpus'}",
        "zero=2",
        "batch.global_size=4",
        "batch.micro_size=1",
        "optim.lr=1e-3",
        "optim.weight_decay=0.1",
        "schedule=constant",
        f"schedule.max_steps={STEPS}",
        "evaluation=skip",
        "tracker=jsonl",
    ]


def plain_losses(cfg: RunConfig, model_path: Path, corpus: Path) -> list[float]:
    """Mean loss over the targets of each update before it is made, on the samples the stream plans for it."""
    split = open_corpus(corpus, verify="sizes").split("train")["alpaca"]
    stream = Stream({"alpaca": split}, cfg.data, seed=cfg.seed, global_size=4, max_steps=STEPS)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).train()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    curve = []
    for plan in stream:
        total = 0.0
        for _, row in [sample for packed in plan.rows for sample in packed.samples]:
            ids, mask = (torch.tensor(each, dtype=torch.long)[None] for each in split.tokens(row))
            labels = torch.where(mask == 1, ids, -100)
            loss = model(input_ids=ids, labels=labels, num_items_in_batch=plan.targets, use_cache=False).loss
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(total)
    return curve


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fifty_steps_on_alpaca_follow_a_plain_loop(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Two ranks, ZeRO-2, packed, targets-only head, against none of that. The worst difference is printed."""
    model = real_data("weights/stories260K/hf")
    arguments = overrides(model, real_data("alpaca/alpaca_data.json.gz"), tmp_path)
    for outcome in (call("data_prep", *arguments), train(2, *arguments, timeout=280)):
        assert outcome[0] == 0, outcome[1]
    found = [line["train/loss"] for line in lines(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line]
    wanted = plain_losses(compose(arguments), model, tmp_path / "corpus")
    assert len(found) == len(wanted) == STEPS
    assert wanted[-1] < wanted[0] - 0.1
    worst = max(abs(one - other) for one, other in zip(found, wanted, strict=True))
    print(f"losses from {wanted[0]:.4f} to {wanted[-1]:.4f}, worst difference {worst:.1e}")
    assert worst <= 1e-4
