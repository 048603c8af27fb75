"""A short run on real samples, and a plain loop for the same task: transformers' loss and torch's AdamW.

Both see the same samples in every update, so that their losses can be compared update by update.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from conf.schema import RunConfig
from data_prep.corpus.shards import open_corpus
from data_prep.stream.stream import Stream
from train.batches.batch import IGNORE

STEPS, SEQ_LEN, ROWS = 50, 512, 4
LR, DECAY, BETAS, EPS, CLIP = 1e-3, 0.1, (0.9, 0.95), 1e-8, 1.0


def overrides(model: Path, alpaca: Path, folder: Path) -> list[str]:
    """The run: stories260K on 2,000 records of Alpaca, packed, fp32, with its files in ``folder``."""
    return [
        "name=curve",
        f"run_dir={folder / 'run'}",
        f"model.path={model}",
        "model.dtype=fp32",
        "data=alpaca",
        f"data.sources.alpaca.path={alpaca}",
        "data.sources.alpaca.rows=2000",
        f"data.seq_len={SEQ_LEN}",
        "data.bad_row_budget=0.5",  # with a vocabulary of 512, many Alpaca records exceed 512 tokens
        f"data.prepared={folder / 'corpus'}",
        "zero=2",
        f"batch.global_size={ROWS}",
        "batch.micro_size=1",
        f"optim.lr={LR}",
        f"optim.weight_decay={DECAY}",
        "schedule=constant",
        f"schedule.max_steps={STEPS}",
        "evaluation=skip",
        "tracker=jsonl",
    ]


@dataclass(frozen=True)
class Sample:
    ids: list[int]
    mask: list[int]
    """1 at targets, 0 at other tokens."""

    @property
    def labels(self) -> list[int]:
        return [token if target else IGNORE for token, target in zip(self.ids, self.mask, strict=True)]


def updates(cfg: RunConfig, corpus: Path) -> Iterator[tuple[int, list[Sample]]]:
    """The number of targets and the samples of every update, from the stream."""
    split = open_corpus(corpus, verify="sizes").split("train")["alpaca"]
    stream = Stream({"alpaca": split}, cfg.data, seed=cfg.seed, global_size=ROWS, max_steps=STEPS)
    for plan in stream:
        rows = [row for packed in plan.rows for _, row in packed.samples]
        yield plan.targets, [Sample(*(array.tolist() for array in split.tokens(row))) for row in rows]


def plain_losses(cfg: RunConfig, corpus: Path) -> list[float]:
    """The mean loss over the targets of every update, before the update; computed sample by sample."""
    model = AutoModelForCausalLM.from_pretrained(cfg.model.path, dtype=torch.float32).train()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    curve = []
    for targets, samples in updates(cfg, corpus):
        total = 0.0
        for sample in samples:
            ids, labels = torch.tensor([sample.ids]), torch.tensor([sample.labels])
            loss = model(input_ids=ids, labels=labels, num_items_in_batch=targets, use_cache=False).loss
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(total)
    return curve
