"""What is wrong with how an attempt or a run ended; nothing if all is as it has to be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.end_to_end.commands import lines
from tests.faults.plans import STEPS, WORLD
from tests.faults.warm import Ended

OUT_AFTER_KILL_S, OUT_AFTER_TERM_S = 10.0, 25.0
SAYS_SAVED = (
    re.compile(r"with a checkpoint of step (\d+)"),
    re.compile(r"the newest on disk is that of step (\d+)"),
)
FAILED, UNEQUAL, LEDGER = "failed resume", "unequal fingerprint", "ledger difference"


@dataclass(frozen=True)
class Result:
    """Of a finished run."""

    fingerprint: str
    ledger: bytes
    losses: list[float]


def result_of(run_dir: Path, verified: Callable[[Path, int | None], tuple[int, str]]) -> Result:
    """``verified(run_dir, step)``: exit code and output of train.fingerprint, which hashes every file first."""
    code, output = verified(run_dir, None)
    losses = [line["train/loss"] for line in lines(run_dir / "metrics.jsonl") if "train/loss" in line]
    return Result(output.strip() if code == 0 else f"none ({output})", (run_dir / "ledger.jsonl").read_bytes(), losses)


def of_kill(ended: Ended, at: float) -> Iterator[str]:
    """A rank ends by the kill, by watchdog or torchrun, with 76, or with 0 if it was done when another was killed."""
    after = max(ended.times) - at
    if ended.hung or set(ended.codes) - {-9, -15, 76, 0}:
        yield f"codes {ended.codes}, hung: {ended.hung}: {ended.output[-1000:]}"
    elif after > OUT_AFTER_KILL_S:
        yield f"the last rank left {after:.1f} s after the kill"


def of_term(
    run_dir: Path, ended: Ended, at: float, verified: Callable[[Path, int | None], tuple[int, str]]
) -> tuple[str, list[str]]:
    """How a run ended that was asked to stop after ``at`` seconds, in words, and what is wrong with it.

    What exit.json says has to be true: a checkpoint that it names verifies, and 74 means that there is none.
    """
    after, wrong = max(ended.times) - at, []
    if ended.hung or after > OUT_AFTER_TERM_S:
        wrong.append(f"{after:.1f} s after the signal, codes {ended.codes}: {ended.output[-1000:]}")
    if -15 in ended.codes:  # before a handler was there: nothing is said, and nothing is lost
        return "ended by the signal in its imports", wrong
    record = exit_record(run_dir)
    code, reason, newest = record.get("code"), str(record.get("reason")), newest_step(run_dir)
    if set(ended.codes) - {code, 76}:
        wrong.append(f"exit.json has {record}, the ranks {ended.codes}: {ended.output[-1000:]}")
    step = next((int(found[1]) for found in (each.search(reason) for each in SAYS_SAVED) if found), None)
    if code in (74, 75) and step is not None:
        refused, output = verified(run_dir, step)
        if refused:
            wrong.append(f"exit.json says {reason!r}, and {output}")
        return f"{code}, with the checkpoint that it names", wrong
    if code == 75 and not newest and ("before its first step" in reason or "before the model" in reason):
        return "75, before the first step", wrong
    if code == 75 and "before the model" in reason:
        return "75, before the model was loaded, with the checkpoint of the attempt before", wrong
    if code == 74 and not newest:
        return "74, nothing is saved", wrong
    if code == 0:
        return "0, it was done", wrong
    return "anything else", [*wrong, f"exit.json has {record}, the newest checkpoint is {newest}"]


def of_end(run_dir: Path, ended: Ended, whole: Result, result: Callable[[], Result]) -> Iterator[str]:
    """Every difference of a run at its end from ``whole``, the run that nobody disturbed."""
    if ended.hung or ended.codes != [0] * WORLD:
        yield f"{FAILED}: codes {ended.codes}, hung: {ended.hung}: {ended.output[-2000:]}"
        return
    found = result()
    if found.fingerprint != whole.fingerprint:
        yield f"{UNEQUAL}: {found.fingerprint} instead of {whole.fingerprint}"
    if found.ledger != whole.ledger:
        yield f"{LEDGER}: {found.ledger[-400:]!r}"
    if found.losses != whole.losses:
        yield f"losses {found.losses} instead of {whole.losses}"
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    # One more than are kept may be there: after a kill between the last rename and its prune, no save prunes again.
    if names[-1] != f"step-{STEPS:08d}" or any(name.startswith(".") for name in names):
        yield f"checkpoints/ holds {names}"


def newest_step(run_dir: Path) -> int:
    """Of the published checkpoints; 0 without any."""
    return max((int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step-*")), default=0)


def exit_record(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "exit.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}
