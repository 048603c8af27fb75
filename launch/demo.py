"""``python -m launch.demo``, which ``make demo`` runs: it runs the real commands in turn and shows their results.

It reads every figure from files of the runs: metrics.jsonl and the answered held-out rows in samples/. The demo runs
on any machine: it uses two CPU processes and no GPU.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from conf.errors import InternalError, leave_with_code
from conf.safety.console import SafeConsole
from data_prep.demo.families import FAMILIES, NEW_FAMILY, family_of
from data_prep.demo.make import NEW, WORDS, normalise, read
from data_prep.demo.nearest import nearest_answers, prompt_of, without
from launch.torchrun import child_environment

RUN, LORA = Path("outputs/demo"), Path("outputs/demo_lora")
PROCESSES = "cluster.gpus_per_node=2"
COMMANDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Prepare the shipped corpus: clean, template, tokenise, write shards", ("data_prep", "experiment=demo")),
    ("Tune every weight, from random ones, with ZeRO-2 on two processes", ("launch", "experiment=demo", PROCESSES)),
    ("Export to a Hugging Face folder", ("train.export", f"run_dir={RUN}")),
    ("Teach the export one more task with LoRA", ("launch", "experiment=demo_lora", PROCESSES)),
    ("Export again, adapters merged", ("train.export", f"run_dir={LORA}")),
)
SHOWN = ("thank", "replace", NEW_FAMILY.name)
"""The families of the three questions to the last export: the first held-out row of each family."""

Sample = Mapping[str, Any]


def main() -> int:
    started = time.monotonic()
    console = SafeConsole(soft_wrap=True, highlight=False)
    for title, command in COMMANDS:
        code = run(console, title, command)
        if code:
            return code
    words, new = answered(RUN, "words"), answered(LORA, "new_family")
    talk(console, [*words[1], *new[1]])
    console.print(losses())
    console.print(scores(words, answered(LORA, "words"), new))
    console.print(where(time.monotonic() - started))
    return 0


def run(console: SafeConsole, title: str, command: Sequence[str]) -> int:
    """Print one command as a user would type it, and run it on this terminal; returns its exit code."""
    console.print(Text(f"\n{title}", style="bold"))
    console.print(f"$ python -m {shlex.join(command)}")
    return subprocess.run([sys.executable, "-m", *command], env=environment(), check=False).returncode


def environment() -> dict[str, str]:
    return {**os.environ, **child_environment(2), "CUDA_VISIBLE_DEVICES": ""}


def answered(run_dir: Path, source: str) -> tuple[list[Sample], list[Sample]]:
    """Answered held-out rows of ``source`` at the first and the last evaluation of a run."""
    files = sorted((run_dir / "samples").glob("step-*.jsonl"))
    if len(files) < 2:
        raise InternalError(f"{run_dir}/samples holds {len(files)} evaluations instead of the first and the last")
    before, after = (json_lines(path) for path in (files[0], files[-1]))
    return tuple([row for row in rows if row["source"] == source] for rows in (before, after))  # type: ignore[return-value]


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def talk(console: SafeConsole, held_out: Iterable[Sample]) -> None:
    """Ask the last export three held-out questions with ``train.chat``."""
    rows = {normalise(prompt_of(row)): row for row in [*read(WORDS), *read(NEW)]}
    first = {str(family_of(sample["prompt"])): sample for sample in reversed([*held_out])}
    for family in SHOWN:
        row = rows[normalise(first[family]["prompt"])]
        command = ["train.chat", f"model={LORA}/export", f"prompt={row['instruction']}"]
        code = run(console, f"Ask: {family}", [*command, f"input={row['input']}"] if row["input"] else command)
        console.print(f"(the right answer is: {row['output']})" if code == 0 else f"(ended with {code})")


def losses() -> Table:
    """Held-out loss at the first and the last evaluation of both runs."""
    table = Table("held-out loss, nats per target token", "before", "after", title="\nLoss")
    for run_dir, keys in ((RUN, ("words",)), (LORA, ("new_family", "words"))):
        evaluations = [line for line in json_lines(run_dir / "metrics.jsonl") if "eval/loss" in line]
        for key in keys:
            first, last = (f"{line[f'eval/{key}/loss']:.4f}" for line in (evaluations[0], evaluations[-1]))
            table.add_row(f"{run_dir}: {key}", first, last)
    return table


def by_family(samples: Iterable[Sample]) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = defaultdict(list)
    for sample in samples:
        found[str(family_of(sample["prompt"]))].append(bool(sample["exact_match"]))
    return found


def nearest_by_family(corpus: Path, samples: Sequence[Sample]) -> dict[str, list[bool]]:
    """Whether the most similar training row of each held-out row has the right answer."""
    prompts = [str(sample["prompt"]) for sample in samples]
    answers = nearest_answers(without(read(corpus), prompts), prompts)
    scored = ({**sample, "exact_match": a == sample["reference"]} for sample, a in zip(samples, answers, strict=True))
    return by_family(scored)


def percent(hits: Sequence[bool]) -> str:
    return f"{100 * sum(hits) / len(hits):.1f}%" if hits else "-"


def scores(
    words: tuple[list[Sample], list[Sample]],
    kept: tuple[list[Sample], list[Sample]],
    new: tuple[list[Sample], list[Sample]],
) -> Table:
    """Exact match per family: before, after full tuning, after LoRA, and the nearest-neighbour baseline."""
    columns = ("task", "held-out rows", "nearest row", "before", "after tuning", "after LoRA")
    table = Table(*columns, title="\nHeld-out exact match")
    nearest = nearest_by_family(WORDS, words[1]) | nearest_by_family(NEW, new[1])
    start, tuned = by_family(words[0]), by_family(words[1]) | by_family(new[0])
    last = by_family(kept[1]) | by_family(new[1])
    for name in (family.name for family in (*FAMILIES, NEW_FAMILY)):
        cells = (nearest[name], start.get(name, []), tuned[name], last[name])
        if name == NEW_FAMILY.name:
            table.add_section()
        table.add_row(name, str(len(nearest[name])), *map(percent, cells))
    table.caption = (
        "nearest row: exact match of copying the answer of the most similar training row. No held-out question was "
        f"asked in training. {NEW_FAMILY.name} is the task that only the LoRA round teaches."
    )
    return table


def where(seconds: float) -> str:
    return f"""
Done in {seconds:.0f} s. Results:
  {RUN}/report.html   {LORA}/report.html   loss curves and answers, to open in a browser
  {RUN}/metrics.jsonl   {RUN}/samples/   the sources of every figure above
  {LORA}/export/   the model; AutoModelForCausalLM.from_pretrained loads it
Next:
  .venv/bin/python -m train.chat model={LORA}/export
  .venv/bin/python -m train.verify experiment=demo   the parity proof: ranks, accumulation, packing
  your own data: README.md, "Your own data"; to start again from nothing: make demo-clean demo"""


if __name__ == "__main__":
    leave_with_code(main)
