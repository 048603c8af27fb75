"""Saves of a run, one at a time, while training goes on: what a save does in which order, and who waits for what.

All ranks reach a step's boundary together and take their snapshots there. Hashing, writing and fsync run in a thread,
and so do the renames and deletions of rank 0; the exchanges between ranks run at later boundaries, in the thread that
trains, because two threads must not use one process group. So the thread never waits for another rank, and training
waits for the snapshot and for two small exchanges.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from conf.attempts.owner import successor
from train.checkpoint.commit import discard, made, prune, publish, settle, write_part
from train.checkpoint.layout import VERSION, folder_of
from train.checkpoint.snapshot import HostCopy, Snapshot, lacking, snapshot
from train.process.faultpoint import faultpoint
from train.ranks.group import Ranks
from train.watchdog.board import Phase
from train.watchdog.heartbeat import heart

if TYPE_CHECKING:
    from train.engine import Engine  # reading a checkpoint needs no DeepSpeed


@dataclass(frozen=True)
class Published:
    step: int
    path: Path
    bytes: int
    """Of all ranks' files."""
    seconds: float = 0.0
    """How long training waited for the save, on this rank."""
    after: float = 0.0
    """From the beginning of the save until it was published."""
    left: str = ""
    """What could not be done after that, as a sentence: it is no failed save."""


@dataclass(frozen=True)
class Failed:
    step: int
    reason: str


Outcome = Published | Failed
Steps = Generator[Future[Any], Any, Outcome]
"""A save: it yields work of the thread and gets what the work returned; in between it is collective."""


class Saver:
    """Publishes checkpoints of ``engine`` in ``run_dir`` and keeps the newest ``keep``.

    ``background``: "never" writes while training waits, and needs no memory; "auto" takes a copy of the fragments where
    the hosts have room for it, and says through ``note`` where they have not; "always" does not ask.
    """

    def __init__(
        self,
        run_dir: Path,
        engine: Engine,
        *,
        ranks: Ranks,
        attempt: int,
        keep: int,
        background: Literal["auto", "always", "never"] = "never",
        note: Callable[[str], None] = print,
    ) -> None:
        self.run_dir, self.engine, self.ranks = run_dir, engine, ranks
        self.attempt, self.keep, self.background, self.note = attempt, keep, background, note
        self.step: int | None = None
        """Of the save in flight."""
        self._copy = HostCopy()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    @property
    def grew(self) -> float:
        """Seconds that snapshots took for new memory, in all; only the first one needs any."""
        return self._copy.grew

    @property
    def writing(self) -> bool:
        """Whether this rank's thread is at work, so that ``advance`` would wait for it. Not collective."""
        return self.step is not None and not self._work.done()

    def begin(self, step: int, extra: dict[str, Any], incident: int = 0) -> Failed | None:
        """Begin to save the state after ``step`` steps; none is in flight. Collective.

        ``extra`` joins the MANIFEST: data cursor, counters, hashes of base and config. ``incident``: see
        ``prune``. Returns the failure of a save that could not begin.
        """
        assert self.step is None, f"the save of step {self.step} is in flight"
        heart.enter(Phase.CHECKPOINT)
        faultpoint("checkpoint.begin")
        began = time.perf_counter()
        temporary = folder_of(self.run_dir, step).with_name(f".tmp-step-{step:08d}-{self.attempt}")
        temporary, fault = self.ranks.broadcast((temporary, made(temporary) if self.ranks.is_main else ""))
        if fault:
            return Failed(step, fault)
        self._began, self._stalled, self._incident = began, 0.0, incident
        part = self._part()
        self._steps = self._save(temporary, step, self._manifest(step, extra), part)
        self.step, self._work = step, next(self._steps)
        self._stalled += time.perf_counter() - began
        return None

    def advance(self) -> Outcome | None:
        """Go on with the save in flight, whose work has ended on all ranks; its outcome if this was the end.

        Collective. Waits for the slowest rank's thread where one is still ``writing``.
        """
        began = time.perf_counter()
        try:
            self._work = self._steps.send(self._work.result())
        except StopIteration as end:
            self.step = None
            return self._timed(end.value, time.perf_counter() - began)
        self._stalled += time.perf_counter() - began
        return None

    def finish(self) -> Outcome | None:
        """Wait until the save in flight has ended; None if there is none. Collective."""
        if self.step is not None:
            heart.enter(Phase.CHECKPOINT)
        while self.step is not None:
            if outcome := self.advance():
                return outcome
        return None

    def _timed(self, outcome: Outcome, waited: float) -> Outcome:
        if isinstance(outcome, Failed):
            return outcome
        now = time.perf_counter()
        return replace(outcome, seconds=self._stalled + waited, after=now - self._began)

    def _save(self, temporary: Path, step: int, manifest: dict[str, Any], part: Snapshot) -> Steps:
        """The steps of one save (train/checkpoint/commit.py)."""
        own = yield self._thread.submit(write_part, temporary, part, self.ranks)
        faultpoint("checkpoint.before_exchange")
        answers = self.ranks.collect(own)  # only the first rank needs the entries of thousands
        final = folder_of(self.run_dir, step)
        end = yield self._thread.submit(self._end, temporary, final, manifest, answers)
        faultpoint("checkpoint.before_outcome")
        fault, size, left = self.ranks.broadcast(end)
        return Failed(step, fault) if fault else Published(step, final, size, left=left)

    def _end(
        self, temporary: Path, final: Path, manifest: dict[str, Any], answers: list[tuple[str, dict[str, Any]]]
    ) -> tuple[str, int, str]:
        """Publish or discard, on the first rank: the reason of a failure, or "", the bytes of all files, and ``left``:
        older checkpoints that could not be deleted are in the way of nobody, and the next save tries again.
        """
        if not self.ranks.is_main:
            return "", 0, ""
        entries = [entry for _, entry in answers]
        fault = next((fault for fault, _ in answers if fault), "")
        if later := successor(self.run_dir, self.attempt):
            fault = f"{later}, has taken this run over"
        fault = fault or publish(temporary, final, manifest, entries)
        if fault:
            discard(temporary)
            return fault, 0, ""
        left = settle(final) or prune(self.run_dir, self.keep, self._incident)
        return "", sum(file["bytes"] for entry in entries for file in entry["files"].values()), left

    def _part(self) -> Snapshot:
        live = snapshot(self.engine, self.ranks)
        if self.background == "auto":
            why = lacking(live, self.ranks)
            self.background = "never" if why else "always"
            if why:
                self.note(f"checkpoints are written while training waits, not in the background: {why}")
        return live if self.background == "never" else self._copy.of(live)

    def _manifest(self, step: int, extra: dict[str, Any]) -> dict[str, Any]:
        """The MANIFEST without what the ranks' files add. A copy: training goes on and changes what it is of."""
        engine = self.engine
        shapes = {name: list(getattr(each, "ds_shape", each.shape)) for name, each in engine.parameters.items()}
        manifest = {
            "version": VERSION,
            "step": step,
            "optimizer_steps": engine.optimizer_steps,
            "world": self.ranks.world,
            "zero_stage": engine.stage,
            "files": {},
            "tensors": {name: {"shape": shape, "pieces": []} for name, shape in shapes.items()},
            **copy.deepcopy(extra),
        }
        if engine.extras:  # absent without hooks, so that such a MANIFEST is what it always was
            manifest["extras"] = engine.extras
        return manifest


def save(
    run_dir: Path, engine: Engine, *, ranks: Ranks, attempt: int, step: int, extra: dict[str, Any], keep: int
) -> Published | str:
    """Publish the state after ``step`` steps now; if any rank fails, discard it and return the reason. Collective."""
    saver = Saver(run_dir, engine, ranks=ranks, attempt=attempt, keep=keep)
    outcome = saver.begin(step, extra) or saver.finish()
    assert outcome is not None
    return outcome.reason if isinstance(outcome, Failed) else outcome
