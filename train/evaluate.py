"""Evaluation on held-out rows, per source: token-weighted loss, and generated answers scored against references.

``python -m train.evaluate run_dir=DIR [checkpoint=N] [max_rows=N] [generate_rows=N]`` does for a stored checkpoint, in
one process and without DeepSpeed, what the run does while it trains.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from conf.errors import ConfigError, leave_with_code
from conf.exits import write_json
from conf.schema import EvaluationConfig, RunConfig
from data_prep.prepared import open_at
from data_prep.shards import Corpus, Split
from train.answers import Answer, Decoder, answer_rows
from train.arguments import run_arguments, whole_number
from train.attention import Attention
from train.distributed import Ranks
from train.figures import per_source
from train.held_out import HeldOut, held_out_loss
from train.plan import number
from train.restored import Restored, restored

__all__ = ["Answer", "HeldOut", "answer_rows", "evaluate_all", "held_out_loss", "open_further", "write_samples"]

USAGE = """usage: python -m train.evaluate run_dir=DIR [checkpoint=N] [max_rows=N] [generate_rows=N]
  run_dir        folder of a run
  checkpoint     step of a checkpoint; default: the newest that verifies
  max_rows       held-out rows per source for the loss, 0: all; default: as the run's evaluation.max_rows
  generate_rows  held-out rows per source that are answered, 0: none; default: as evaluation.generate_rows"""


def open_further(cfg: RunConfig, tokenizer_fingerprint: str) -> dict[str, Corpus]:
    """The corpora of ``evaluation.sources``. ConfigError if one has another tokenizer or samples longer than a row."""
    opened = {
        name: open_at(place, cfg.data.cache, verify="sizes", key=f"evaluation.sources.{name}")
        for name, place in cfg.evaluation.sources.items()
    }
    problems = []
    for name, corpus in opened.items():
        where = f"evaluation.sources.{name}: {corpus.path}"
        if corpus.tokenizer_fingerprint != tokenizer_fingerprint:
            problems.append(f"{where} was prepared with another tokenizer; prepare it with this run's model.tokenizer")
        if corpus.manifest["max_tokens"] > cfg.data.seq_len:
            longest = corpus.manifest["max_tokens"]
            problems.append(
                f"{where} holds a sample of {longest} tokens, more than data.seq_len={cfg.data.seq_len}; "
                "prepare it with this run's data.seq_len"
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
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics ``eval/...`` and the answered rows, the same on every rank. Collective.

    ``eval/loss`` is token-weighted over the run's own sources. A source of a further corpus is named
    ``<corpus>.<source>``. Sources without held-out rows are absent.
    """
    metrics: dict[str, float] = {}
    samples: list[dict[str, Any]] = []
    totals: list[HeldOut] = []
    own = corpus.split("validation")
    for name, split in held_out_splits(own, open_further(cfg, corpus.tokenizer_fingerprint)).items():
        loss = held_out_loss(
            model,
            split,
            attention=attention,
            seq_len=cfg.data.seq_len,
            micro_size=number(cfg.batch.micro_size),
            max_rows=cfg.evaluation.max_rows,
            pad_id=tokenizer.pad_id,
            ranks=ranks,
            targets_only=cfg.compute.targets_only_head,
        )
        if loss.tokens:
            metrics[f"eval/{name}/loss"] = loss.loss
        if name in own:
            totals.append(loss)
        answers = answer_rows(
            model,
            split,
            tokenizer,
            rows=cfg.evaluation.generate_rows,
            max_new_tokens=cfg.evaluation.max_new_tokens,
            batch_size=cfg.evaluation.batch_size,
            ranks=ranks,
            synced=cfg.zero.stage == 3 and ranks.world > 1,
        )
        metrics |= answer_metrics(name, answers)
        samples += [{"source": name, **answer.to_dict()} for answer in answers]
    tokens = sum(total.tokens for total in totals)
    if tokens:
        metrics = {"eval/loss": sum(total.nll for total in totals) / tokens, **metrics}
    return metrics, samples


def held_out_splits(own: Mapping[str, Split], further: Mapping[str, Corpus]) -> dict[str, Split]:
    """Validation splits by the name they have in metrics. Raises ConfigError if two would share one."""
    splits = dict(own)
    for name, corpus in further.items():
        for source, split in corpus.split("validation").items():
            if f"{name}.{source}" in splits:
                raise ConfigError(f"evaluation.sources.{name}: {name}.{source} is a source of the run too; rename it")
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
    """Answered rows as ``samples/step-NNNNNNNN.jsonl``, one object per line; None and no file if there are none."""
    if not samples:
        return None
    path = run_dir / "samples" / f"step-{step:08d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples), encoding="utf-8")
    temporary.replace(path)
    return path


def main() -> int:
    known = ("run_dir", "checkpoint", "max_rows", "generate_rows")
    arguments = run_arguments(sys.argv[1:], known, USAGE)
    run = restored(Path(arguments["run_dir"]), whole_number(arguments, "checkpoint"))
    cfg = replace(run.cfg, evaluation=asked_for(run.cfg.evaluation, arguments))
    metrics, samples = evaluate_all(
        run.model, run.corpus, cfg, tokenizer=run.tokenizer, attention=run.attention, ranks=run.ranks
    )
    path = run.run_dir / f"evaluation-step-{run.step}.json"
    write_json(path, {"step": run.step, "metrics": metrics, "samples": samples})
    Console(soft_wrap=True).print(table(run, metrics, samples))
    print(path)
    return 0


def asked_for(evaluation: EvaluationConfig, arguments: Mapping[str, str]) -> EvaluationConfig:
    """The run's settings with what the command line changes."""
    named = {key: whole_number(arguments, key) for key in ("max_rows", "generate_rows")}
    changes: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    return replace(evaluation, **changes)


def table(run: Restored, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]]) -> Table:
    """One line per source."""
    shown = Table(title=f"{run.cfg.name}, step {run.step}", title_justify="left")
    shown.add_column("source", overflow="fold")
    for heading in ("loss", "exact match", "ROUGE-L", "answered"):
        shown.add_column(heading, justify="right")
    figures = {figure: per_source(metrics, figure) for figure in ("loss", "exact_match", "rouge_l")}
    for source in dict.fromkeys([*figures["loss"], *figures["exact_match"]]):
        answered = sum(sample["source"] == source for sample in samples)
        shown.add_row(
            source,
            *(formatted(figures[figure].get(source), form) for figure, form in FORMATS.items()),
            str(answered),
        )
    if "eval/loss" in metrics:
        shown.add_section()
        shown.add_row("all, by tokens", f"{metrics['eval/loss']:.4f}", "", "", str(len(samples)))
    return shown


FORMATS = {"loss": "{:.4f}", "exact_match": "{:.1%}", "rouge_l": "{:.3f}"}


def formatted(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


if __name__ == "__main__":
    leave_with_code(main)
