"""Compute the held-out loss and the answers of a run's checkpoint, as a table and a JSON file in the run's folder."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from conf.command import whole_number
from conf.compose import config_of_run
from conf.errors import leave_with_code
from conf.exits import write_json
from conf.safety.console import SafeConsole
from conf.schema import RunConfig
from train.tracking.figures import per_source

KEYS = {
    "checkpoint": "step of a checkpoint; default: the newest that verifies",
    "max_rows": "short for evaluation.max_rows: held-out rows per source for the loss, 0: all",
    "generate_rows": "short for evaluation.generate_rows: held-out rows per source that are answered, 0: none",
}
SECTIONS = ("evaluation", "data", "model", "batch", "compute")
"""The sections of the run's config that an evaluation reads."""


def asked_for(argv: Sequence[str]) -> tuple[RunConfig, int | None]:
    """The run's config with what the command line changes, and the checkpoint. Raises ConfigError or MissingInput."""
    cfg, own = config_of_run(argv, command="train.evaluate", sections=SECTIONS, extra=KEYS)
    short = {key: whole_number(own, key) for key in ("max_rows", "generate_rows")}
    changes: dict[str, Any] = {key: value for key, value in short.items() if value is not None}
    return replace(cfg, evaluation=replace(cfg.evaluation, **changes)), whole_number(own, "checkpoint")


def main() -> int:
    cfg, step = asked_for(sys.argv[1:])
    from train.checkpoint.reopen import reopen  # torch only now: a typo is told within a second
    from train.evaluate.evaluation import evaluate_all
    from train.process.causes import causes_named

    with causes_named():
        run = reopen(Path(cfg.run_dir), step, cfg)
        metrics, samples = evaluate_all(
            run.model, run.corpus, run.cfg, tokenizer=run.tokenizer, attention=run.attention, ranks=run.ranks
        )
    path = run.run_dir / f"evaluation-step-{run.step}.json"
    write_json(path, {"step": run.step, "metrics": metrics, "samples": samples})
    SafeConsole(soft_wrap=True).print(table(f"{cfg.name}, step {run.step}", metrics, samples))
    print(path)
    return 0


def table(title: str, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]]) -> Table:
    """One line per source."""
    shown = Table(title=title, title_justify="left")
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
