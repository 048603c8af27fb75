"""Decides after an attempt: end the run, or start again from the last good checkpoint. All clusters share this rule.

A run that ends with 75 (checkpointed, requeue me) or 76 (a rank died or hung) is started again; any other code needs
a person. After
``max_restarts`` restarts in a row without progress it is a crash loop and ends with 70.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from conf.exits import ExitRecord, reduce_exits, write_json

RESTARTABLE = (75, 76)
FEW_STEPS = 5
"""Restarts that together gain fewer steps are no progress: one step per attempt would go on for ever."""


@dataclass(frozen=True)
class Outcome:
    record: ExitRecord
    again: bool
    """Start another attempt."""


def newest_checkpoint(run_dir: Path) -> int:
    """Step of the newest published checkpoint; 0 if there is none. The process that loads it checks its hashes."""
    found = run_dir.glob("checkpoints/step-*/MANIFEST.json")
    steps = [path.parent.name.removeprefix("step-") for path in found]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def settle(run_dir: Path, *, attempt: int, first: int, world: int, max_restarts: int) -> Outcome:
    """Reduce the ranks' exit files of ``attempt`` to exit.json and decide. ``first``: the series' first attempt."""
    record = reduce_exits(run_dir, attempt, world)
    mark = {"code": record.code, "step": record.step, "checkpoint": newest_checkpoint(run_dir)}
    write_json(_end_mark(run_dir, attempt), mark)
    if record.code not in RESTARTABLE:
        return Outcome(record, again=False)
    idle = idle_restarts(run_dir, first, attempt)
    if idle < max_restarts:
        return Outcome(record, again=True)
    return Outcome(_crash_loop(run_dir, record, idle) if idle else record, again=False)


def idle_restarts(run_dir: Path, first: int, last: int) -> int:
    """How many restarts in a row, up to attempt ``last``, together gained fewer than FEW_STEPS steps.

    A step that was trained counts, and so does the step of a checkpoint.
    """
    idle, best = 0, (-FEW_STEPS, -FEW_STEPS)
    for attempt in range(first, last + 1):
        path = _end_mark(run_dir, attempt)
        if not path.is_file():  # its supervisor was killed: nothing is known, so it does not count
            continue
        mark = json.loads(path.read_text(encoding="utf-8"))
        if mark["step"] >= best[0] + FEW_STEPS or mark["checkpoint"] >= best[1] + FEW_STEPS:
            idle, best = 0, (max(best[0], mark["step"]), max(best[1], mark["checkpoint"]))
        else:
            idle += 1
    return idle


def _end_mark(run_dir: Path, attempt: int) -> Path:
    return run_dir / "exit" / f"attempt-{attempt}-end.json"


def _crash_loop(run_dir: Path, record: ExitRecord, idle: int) -> ExitRecord:
    step = max(record.step, newest_checkpoint(run_dir))
    reason = (
        f"{idle} restarts gained fewer than {FEW_STEPS} steps, up to step {step}; "
        f"the last one ended with {record.code}: {record.reason}"
    )
    hint = f"read {run_dir}/logs, remove the cause, and start again: the run continues from the last good checkpoint"
    looped = ExitRecord(70, reason, step, hint, record.attempt)
    write_json(run_dir / "exit.json", asdict(looped))
    return looped
