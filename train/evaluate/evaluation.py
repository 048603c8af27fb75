"""Evaluation on held-out samples, per source: token-weighted loss, and answers scored against references.

``python -m train.evaluate run_dir=DIR [checkpoint=N] [max_rows=N] [generate_rows=N]`` evaluates a checkpoint in one
process without DeepSpeed, with the same code that a run uses while it trains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from conf.durable import write_whole
from conf.errors import ConfigError
from conf.schema import RunConfig
from data_prep.corpus.prepared import open_at
from data_prep.corpus.shards import Corpus, Split
from train.attention import Attention
from train.batches.feed import Feed
from train.evaluate.answers import Answer, Asked, Decoder, answer_rows
from train.evaluate.held_out import HeldOut, held_out_loss
from train.plan import number
from train.process.faultpoint import faultpoint
from train.ranks.group import Ranks
from train.watchdog.board import Phase
from train.watchdog.heartbeat import heart

__all__ = ["Answer", "HeldOut", "answer_rows", "evaluate_all", "held_out_loss", "open_further", "write_samples"]


def open_further(cfg: RunConfig, tokenizer_fingerprint: str) -> dict[str, Corpus]:
    """The corpora of ``evaluation.sources``.

    Raises ConfigError if a corpus has another tokenizer, or a sample of more than ``data.seq_len`` tokens.
    """
    opened = {
        name: open_at(place, cfg.data.cache, verify="sizes", key=f"evaluation.sources.{name}")
        for name, place in cfg.evaluation.sources.items()
    }
    problems = []
    for name, corpus in opened.items():
        where = f"evaluation.sources.{name}: {corpus.path}"
        if corpus.tokenizer_fingerprint != tokenizer_fingerprint:
            problems.append(
                f"{where} was prepared with another tokenizer than this run's; prepare it with this run's "
                "model.tokenizer"
            )
        if corpus.manifest["max_tokens"] > cfg.data.seq_len:
            longest = corpus.manifest["max_tokens"]
            problems.append(
                f"{where} contains a sample of {longest} tokens, which is more than this run's "
                f"data.seq_len={cfg.data.seq_len}; prepare it with this run's data.seq_len"
            )
    if problems:
        raise ConfigError(problems)
    return opened


def evaluate_all(
    model: torch.nn.Module,
    corpus: Corpus,
    cfg: RunConfig,
    *,
    tokenizer: Decoder,
    attention: Attention,
    ranks: Ranks,
    check: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics ``eval/...`` and the answered samples, the same on every rank. Collective.

    ``eval/loss`` is token-weighted over the sources of the run's corpus. A source of another corpus is named
    ``<corpus>.<source>``. Sources without held-out samples are absent. ``check`` is called in between, by all ranks at
    the same places; it may raise.
    """
    heart.enter(Phase.EVALUATION)
    faultpoint("evaluation.begin")
    metrics: dict[str, float] = {}
    samples: list[dict[str, Any]] = []
    totals: list[HeldOut] = []
    own = corpus.split("validation")
    splits = held_out_splits(own, open_further(cfg, corpus.tokenizer_fingerprint))
    for name, split in splits.items():
        check()
        loss = held_out_loss(
            model,
            Feed([split], attention.layout, tokenizer.pad_id, ranks, number(cfg.batch.micro_size)),
            seq_len=cfg.data.seq_len,
            max_rows=cfg.evaluation.max_rows,
            targets_only=cfg.compute.targets_only_head,
        )
        if loss.weight:
            metrics[f"eval/{name}/loss"] = loss.loss
        if name in own:
            totals.append(loss)
    faultpoint("evaluation.losses")
    asked = Asked(cfg.evaluation.generate_rows, cfg.evaluation.max_new_tokens, cfg.evaluation.batch_size)
    synced = cfg.zero.stage == 3 and ranks.world > 1
    for name, answers in answer_rows(model, splits, tokenizer, asked, ranks=ranks, synced=synced, check=check).items():
        metrics |= answer_metrics(name, answers)
        samples += [{"source": name, **answer.to_dict()} for answer in answers]
    weight = sum(total.weight for total in totals)
    if weight:
        metrics = {"eval/loss": sum(total.nll for total in totals) / weight, **metrics}
    return metrics, samples


def held_out_splits(own: Mapping[str, Split], further: Mapping[str, Corpus]) -> dict[str, Split]:
    """Validation splits by their name in metrics. Raises ConfigError if two splits have the same name."""
    splits = dict(own)
    for name, corpus in further.items():
        for source, split in corpus.split("validation").items():
            if f"{name}.{source}" in splits:
                raise ConfigError(
                    f"evaluation.sources.{name}: {name}.{source} is also a source of the run, so their metrics would "
                    f"have the same name; rename evaluation.sources.{name}"
                )
            splits[f"{name}.{source}"] = split
    return splits


def answer_metrics(name: str, answers: Sequence[Answer]) -> dict[str, float]:
    if not answers:
        return {}
    return {
        f"eval/{name}/exact_match": sum(answer.exact_match for answer in answers) / len(answers),
        f"eval/{name}/rouge_l": sum(answer.rouge_l for answer in answers) / len(answers),
    }


def write_samples(run_dir: Path, step: int, samples: Sequence[Mapping[str, Any]]) -> Path | None:
    """Write answered samples to ``samples/step-NNNNNNNN.jsonl``, one object per line; without samples return None."""
    if not samples:
        return None
    path = run_dir / "samples" / f"step-{step:08d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples))
    return path
