"""What is kept of a run: of every step a line of the ledger, its metrics and what is worth a word; checkpoints.

A run ends with "checkpointed" only if that is true.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from conf.errors import CorralError, Requeue, StorageError
from train import checkpoint, copies
from train.assembly import Run
from train.checkpoint.files import fsync
from train.checkpoint.layout import steps_on_disk
from train.checkpoint.timetable import Timetable
from train.loop import StepReport
from train.model.compiled import compilations
from train.process.run_dir import append, batch_digest
from train.ranks.step import Signs
from train.state import due
from train.tracking.device import FIGURES, device_metrics
from train.tracking.flops import device_peak, recomputed_flops, step_flops
from train.tracking.metrics import Work, step_metrics
from train.watchdog.board import Phase
from train.watchdog.heartbeat import heart

MOST_FAILED = 5
"""After so many failed saves in a row, a run stops: each further step would be lost too."""
COPY_WAIT_S, COPY_GRACE_S = 3600.0, 10.0
"""How long a run that has finished waits for its last copy, and one that was stopped or failed."""


def warn(run: Run, text: str) -> None:
    run.tracker.event("warning", step=run.state.step, text=text)
    run.tracker.note(f"warning: {text}")


def record(run: Run, report: StepReport) -> None:
    """Append the step to the ledger, and log its metrics if due: on the first rank, which alone has trackers."""
    if not run.ranks.is_main:
        return
    line = {
        "step": run.state.step,
        "digest": batch_digest(report.fed),
        "samples": len(report.fed),
        "tokens": report.plan.tokens,
        "targets": report.plan.targets,
    }
    if report.skipped:
        line["skipped"] = True
    append(run.run_dir / "ledger.jsonl", line)
    if report.skipped:
        samples = origins(run, report)
        run.tracker.event("skip", step=run.state.step, grad_norm=str(report.grad_norm), samples=samples)
    if slow := run.straggler.watch(report.own[:, FIGURES.index("busy_s")]):
        warn(run, slow)
    compiled, (again, eagerly) = compilations.take(), compilations.news()
    for text in again:
        run.tracker.event("recompiled", step=run.state.step, text=text)
    for text in eagerly:
        warn(run, f"torch.compile: {text}")
    if due(run.state.step, run.cfg.tracker.log_every) or run.state.step == run.total_steps:
        metrics = step_metrics(
            run.state,
            report,
            names=run.stream.names,
            seq_len=run.cfg.data.seq_len,
            work=Work(
                world=run.ranks.world,
                flops=step_flops(run.model_config, report.plan, run.cfg),
                recomputed=recomputed_flops(run.model_config, report.plan, run.cfg),
                peak=device_peak(run.ranks.device, run.cfg.model.dtype),
            ),
        )
        devices = device_metrics(report.own, run.ranks.local_world)
        run.tracker.log(run.state.step, metrics | compiled | devices)


def tell_copies(run: Run, outcomes: Iterable[copies.Copied | copies.NotCopied]) -> None:
    """A copy that failed is told as a save that failed; the next checkpoint is the next try."""
    for outcome in outcomes:
        if isinstance(outcome, copies.Copied):
            run.tracker.event("copy", **asdict(outcome))
        else:
            run.tracker.event("copy_failed", **asdict(outcome))
            warn(run, f"the checkpoint of step {outcome.step} was not copied: {outcome.reason}")


def end_copies(run: Run, code: int) -> None:
    """At the end of a run, whatever its ``code``: a run that was stopped must leave soon."""
    if run.copier:
        tell_copies(run, run.copier.finish(COPY_GRACE_S))


def origins(run: Run, report: StepReport) -> list[dict[str, Any]]:
    """The samples of a step: uid, raw file and record number in that file."""
    samples = []
    for packed in report.plan.rows:
        for source, row in packed.samples:
            file, index, _ = run.splits[source].origin(row)
            samples.append({"uid": f"{run.splits[source].uid(row):016x}", "file": file, "row": index})
    return samples


class Saving:
    """When the run saves, what is told of it, and where that leaves the run. All methods are collective."""

    def __init__(self, run: Run, saved_at: int = 0) -> None:
        self.run = run
        self.saved_at = saved_at
        """The step of the newest checkpoint on disk; 0: there is none."""
        self.failed = 0
        """Saves in a row that failed."""
        self.owed = False
        """A save was due and the guard withholds it."""
        self.why = ""
        """The reason of the last failure."""
        self.saver = checkpoint.Saver(
            run.run_dir,
            run.engine,
            ranks=run.ranks,
            attempt=run.attempt,
            keep=run.cfg.checkpoint.keep,
            background=run.cfg.checkpoint.background,
            note=run.tracker.note,
        )
        every = run.cfg.checkpoint
        if run.copier and saved_at:
            run.copier.begin(saved_at)  # the attempt before may have ended within its copy
        self.timetable = Timetable(every.every_minutes, measure=every.every_steps == "auto", gpus=run.ranks.world)

    def signs(self, stop: bool) -> Signs:
        """What this rank says at the end of a step. Not collective."""
        save = self.run.ranks.is_main and self.timetable.due(in_flight=self.saver.step is not None)
        return Signs(stop, self.saver.writing, save)

    def due(self, signs: Signs) -> bool:
        """Whether a checkpoint is due after this step. Not collective."""
        every = self.run.cfg.checkpoint.every_steps
        return signs.save or (every != "auto" and due(self.run.state.step, every))

    def now(self, signs: Signs, skipped: bool) -> bool:
        """Whether to save after this step. Not collective, and the same on every rank.

        A save that is due waits until the guard's incident is over; one before the end of the run does not, because the
        checkpoint from before the incident stays.
        """
        self.owed = self.owed or self.due(signs)
        saves = not skipped and (signs.stop or (self.owed and not self.run.state.health.withheld))
        self.owed = self.owed and not saves
        return saves

    def save(self, *, must: bool = False) -> None:
        """Begin a checkpoint of this step, and wait for it where it is not written in the background.

        The one before ends first. A failure is an event and a warning; a StorageError with ``must``, which always waits
        and whose failure ends the run, or after several in a row.
        """
        self.settle()
        run = self.run
        run.tracker.sync()
        ledger = run.run_dir / "ledger.jsonl"
        if run.ranks.is_main and ledger.exists():
            fsync(ledger)  # so that no checkpoint outlasts the lines of its steps
        extra = {
            "state": run.state.to_dict(),
            "stream": run.stream.state_dict(),
            **asdict(run.made_from),
            "config": run.config,
            "parent": self.saved_at or -1,
            "versions": versions(),
        }
        self.timetable.begun()
        failed = self.saver.begin(run.state.step, extra, run.state.health.incident)
        if failed or must or self.saver.background == "never":
            self._ended(failed or self.saver.finish(), must=must)

    def go_on(self, signs: Signs) -> None:
        """At the boundary of a step: go on with the save in flight if no rank is still writing."""
        if self.saver.step is not None and not signs.writing:
            self._ended(self.saver.advance())
        if self.run.copier and (copied := self.run.copier.ended()):
            tell_copies(self.run, [copied])

    def settle(self) -> None:
        """Wait until the save in flight has ended, if there is one."""
        self._ended(self.saver.finish())

    def wait_for_copies(self) -> None:
        """Wait until the newest checkpoint is copied, within COPY_WAIT_S."""
        if not self.run.cfg.checkpoint.copy_to:
            return
        heart.enter(Phase.CHECKPOINT)
        copier = self.run.copier
        tell_copies(self.run, self.run.ranks.once(lambda: copier.finish(COPY_WAIT_S) if copier else []))

    def _ended(self, outcome: checkpoint.Outcome | None, *, must: bool = False) -> None:
        if isinstance(outcome, checkpoint.Failed):
            self._failed(outcome, must=must)
        elif outcome is not None:
            self.saved_at, self.failed, tracker = outcome.step, 0, self.run.tracker
            if self.run.copier:
                self.run.copier.begin(outcome.step)
            tracker.event("checkpoint", step=outcome.step, path=str(outcome.path), bytes=outcome.bytes)
            figures = {"ckpt/stall_s": outcome.seconds, "ckpt/commit_s": outcome.after, "ckpt/bytes": outcome.bytes}
            tracker.log(self.run.state.step, figures)
            if outcome.left:
                warn(self.run, outcome.left)
            if text := self.timetable.published(outcome.seconds - self.saver.grew, outcome.after):
                tracker.event("note", step=self.run.state.step, text=text)
                tracker.note(text)

    def _failed(self, outcome: checkpoint.Failed, *, must: bool) -> None:
        self.failed, self.why, step = self.failed + 1, outcome.reason, outcome.step
        self.run.tracker.event("checkpoint_failed", step=step, reason=self.why)
        if must:
            raise StorageError(f"the last checkpoint could not be written: {self.why}; {self.way_out}")
        warn(self.run, f"the checkpoint of step {step} could not be written: {self.why}; {self.on_disk}")
        if self.failed == MOST_FAILED:
            raise StorageError(f"{self.failed} checkpoints in a row could not be written: {self.why}; {self.way_out}")

    @property
    def newest(self) -> int:
        """As ``saved_at``; also a checkpoint that is published and of which this rank has not been told."""
        return max([self.saved_at, *steps_on_disk(self.run.run_dir)])

    @property
    def on_disk(self) -> str:
        return f"the newest on disk is that of step {self.newest}" if self.newest else "none is on disk"

    @property
    def way_out(self) -> str:
        return f"free some space and start the run again ({self.on_disk})"

    def stopped(self, reason: str) -> CorralError:
        """How a run ends that was asked to stop: 75 if starting it again loses nothing unsaid, else 74."""
        step = self.run.state.step
        if self.newest == step or not step:
            saved = f"with a checkpoint of step {step}" if step else "before its first step"
            return Requeue(f"stopped {saved} because of {reason}")
        failure = f"; the checkpoint of step {step} could not be written: {self.why}" if self.failed else ""
        if self.newest:
            return Requeue(f"stopped at step {step} because of {reason}{failure}; {self.on_disk}")
        return StorageError(
            f"stopped at step {step} because of {reason}, and nothing is saved{failure}; {self.way_out}"
        )


def versions() -> dict[str, str]:
    """Versions of the libraries that computed the checkpoint."""
    return {name: version(name) for name in ("torch", "deepspeed", "transformers", "peft", "numpy")}
