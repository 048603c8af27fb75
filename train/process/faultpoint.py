"""Named places where a run can be made to fail, so that tests and the soak fail it where they mean to.

The environment variable CORRAL_FAULTS holds the plan; without it a place costs the test of one list. Faults are divided
by semicolons, and the line that a fault prints when it acts is a plan that repeats it:

    CORRAL_FAULTS="rank=1,step=37,point=checkpoint.before_rename,nth=2,action=SIGKILL"

``rank`` and ``step`` (optimizer steps completed by then) may be left out: any. ``nth`` counts how often this process
came to the place, by rank and step where they are given; 1 if left out, and ``all`` acts every time.
"""

from __future__ import annotations

import difflib
import errno
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from conf.errors import ConfigError

POINTS = {
    "start.claimed": "the run folder is made, and locked by rank 0",
    "start.corpus": "the corpus is checked and opened; no process group yet",
    "start.group": "the process groups exist",
    "start.swept": "what an earlier attempt left behind is deleted (rank 0)",
    "start.model": "the model and the engine are built",
    "start.restored": "the checkpoint is restored; ledger and metrics still have the steps after it",
    "start.ready": "everything is built; no step yet",
    "step.before_update": "the gradients are summed",
    "step.after_update": "the weights have changed; the ranks have not told each other",
    "step.recorded": "the step is in the ledger",
    "checkpoint.begin": "a save begins",
    "checkpoint.before_write": "the copy is taken, and the thread makes its first file",
    "checkpoint.in_file": "in the middle of a file; nth counts tensors",
    "checkpoint.after_fsync": "this rank's files are on the disk",
    "checkpoint.before_exchange": "the ranks are about to exchange their hashes",
    "checkpoint.manifest": "MANIFEST.json is on the disk, its seal is not; at each second nth it is too (rank 0)",
    "checkpoint.before_rename": "all is on the disk under the temporary name (rank 0)",
    "checkpoint.before_latest": "the folder has its name, LATEST names the one before (rank 0)",
    "checkpoint.before_prune": "the checkpoint is published, older ones are not deleted (rank 0)",
    "checkpoint.in_prune": "an old checkpoint is renamed and not deleted (rank 0)",
    "checkpoint.before_outcome": "the ranks are about to hear whether the checkpoint is published",
    "evaluation.begin": "an evaluation begins",
    "evaluation.losses": "the held-out losses are known, no answer is generated",
    "evaluation.end": "the evaluation is done, its metrics are not logged",
    "end.saved": "all steps are done and the last checkpoint is published",
    "end.report": "the end is in events.jsonl",
    "end.record": "all is closed; the record of the end is not written",
}  # fmt: skip
"""Each place has one call of ``faultpoint`` in the code."""
SIGNALS = {each.name: each for each in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)}
ERRORS = {errno.errorcode[each]: each for each in (errno.EIO, errno.ENOSPC)}
ACTIONS = (*SIGNALS, *ERRORS, "raise")
FIELDS = ("rank", "step", "point", "nth", "action")
EVERY = -1


@dataclass
class Fault:
    point: str
    action: str
    rank: int | None = None
    step: int | None = None
    nth: int = 1
    seen: int = 0
    """How often this process came to the place."""

    def __str__(self) -> str:
        """As it stands in a plan."""
        given = {"rank": self.rank, "step": self.step, "point": self.point}
        given |= {"nth": "all" if self.nth == EVERY else self.nth, "action": self.action}
        return ",".join(f"{key}={value}" for key, value in given.items() if value is not None)


_armed: list[Fault] = []
_step = 0


def faultpoint(point: str, step: int | None = None) -> None:
    """The run comes to ``point``, after ``step`` optimizer steps; None: as many as at the place before."""
    if _armed:
        _reach(point, step)


def arm(environment: Mapping[str, str]) -> list[Fault]:
    """Arm the faults of CORRAL_FAULTS that concern this rank, and return those of all. Raises ConfigError (78)."""
    text = environment.get("CORRAL_FAULTS", "")
    faults = [_parsed(part.strip()) for part in text.split(";")] if text else []
    rank = int(environment.get("RANK", "0"))
    _armed[:] = [fault for fault in faults if fault.rank in (None, rank)]
    if faults and rank == 0:
        _say("this run will fail on purpose, because CORRAL_FAULTS says so")
    return faults


def _parsed(text: str) -> Fault:
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    given = dict(pairs)
    why = next(_wrong_of(pairs, given), "")
    if why:
        raise ConfigError(f"CORRAL_FAULTS: {why}, in {text!r}; correct the plan, or unset the variable for a true run")
    rank, step = (int(given[key]) if key in given else None for key in ("rank", "step"))
    nth = EVERY if given.get("nth") == "all" else int(given.get("nth", 1))
    return Fault(given["point"], given["action"], rank, step, nth)


def _wrong_of(pairs: Sequence[tuple[str, str]], given: Mapping[str, str]) -> Iterator[str]:
    yield from (f"{key!r} is no field of a fault ({', '.join(FIELDS)})" for key, _ in pairs if key not in FIELDS)
    yield from (f"{key} is missing" for key in ("point", "action") if key not in given)
    if len(given) < len(pairs):
        yield "a field is given twice"
    for key, least in (("rank", 0), ("step", 0), ("nth", 1)):
        text = given.get(key, "1")
        number = text.isascii() and text.isdigit() and int(text) >= least
        if not number and (key, text) != ("nth", "all"):
            yield f"{key}={text} is no whole number{' from 1 on' if least else ''}"
    if given["point"] not in POINTS:
        yield f"point={given['point']} is no place{_nearest(given['point'])}"
    if given["action"] not in ACTIONS:
        yield f"action={given['action']} is none of {', '.join(ACTIONS)}"


def _nearest(point: str) -> str:
    near = difflib.get_close_matches(point, POINTS, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _reach(point: str, step: int | None) -> None:
    global _step
    if step is not None:
        _step = step
    for fault in _armed:
        if fault.point == point and fault.step in (None, _step):
            fault.seen += 1
            if fault.nth in (EVERY, fault.seen):
                _act(fault)


def _act(fault: Fault) -> None:
    where = f"rank {os.environ.get('RANK', '0')}, after step {_step}, at {time.time():.3f}"
    _say(f"CORRAL_FAULTS acts ({where}): {fault}")
    if fault.action in SIGNALS:
        os.kill(os.getpid(), SIGNALS[fault.action])
    elif fault.action in ERRORS:
        number = ERRORS[fault.action]
        raise OSError(number, f"{os.strerror(number)} (planted at {fault.point})")
    else:
        raise RuntimeError(f"planted by CORRAL_FAULTS at {fault.point}")


def _say(text: str) -> None:
    """At once and past every buffer, because the process may be gone after it."""
    os.write(2, f"corral: {text}\n".encode())
