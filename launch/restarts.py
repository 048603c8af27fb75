"""What follows the end of an attempt: leave, or start again from the last good checkpoint. One rule for every cluster.

75 (checkpointed, requeue me) and 76 (a rank died or hung) are started again; everything else needs a person. After
``max_restarts`` restarts in a row without progress it is a crash loop and ends with 70.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from conf.exits import ExitRecord, reduce_exits, write_json

RESTARTABLE = (75, 76)


@dataclass(frozen=True)
class Outcome:
    record: ExitRecord
    again: bool
    """Start another attempt."""


def newest_checkpoint(run_dir: Path) -> int:
    """Step of the newest published checkpoint; 0 if there is none. Its hashes are checked by who loads it."""
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
    """Restarts in a row, up to attempt ``last``, that brought neither a newer checkpoint nor a later step."""
    idle, best = 0, (-1, -1)
    for attempt in range(first, last + 1):
        path = _end_mark(run_dir, attempt)
        if not path.is_file():  # its supervisor was killed: nothing is known, so it does not count
            continue
        mark = json.loads(path.read_text())
        progress = mark["step"] > best[0] or mark["checkpoint"] > best[1]
        idle = 0 if progress else idle + 1
        best = (max(best[0], mark["step"]), max(best[1], mark["checkpoint"]))
    return idle


def _end_mark(run_dir: Path, attempt: int) -> Path:
    return run_dir / "exit" / f"attempt-{attempt}-end.json"


def _crash_loop(run_dir: Path, record: ExitRecord, idle: int) -> ExitRecord:
    step = max(record.step, newest_checkpoint(run_dir))
    reason = f"no progress past step {step} in {idle} restarts, the last ended with {record.code}: {record.reason}"
    hint = f"read {run_dir}/logs, and start again once the cause is gone: the last good checkpoint is kept"
    looped = ExitRecord(70, reason, step, hint, record.attempt)
    write_json(run_dir / "exit.json", asdict(looped))
    return looped
