"""What follows from a bad step: a word, a step without an update, a rollback, or the end of the run.

docs/reliability.md has the rules. Everything here follows from numbers that all ranks have, so all ranks do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conf.errors import InternalError
from train.assembly import Run
from train.checkpoint.check import newest_good, pass_over
from train.checkpoint.commit import withdraw
from train.checkpoint.layout import Damaged, steps_before, steps_on_disk
from train.guard.incidents import dump
from train.guard.judging import Finding, judge, notice, refuses, unlearnt
from train.loop import StepReport
from train.process.run_dir import append
from train.recording import Saving, warn
from train.watchdog.board import Phase
from train.watchdog.heartbeat import heart


class Guard:
    """The guard of ``run``, whose checkpoints ``saving`` writes."""

    def __init__(self, run: Run, saving: Saving) -> None:
        self.run, self.saving, self.cfg = run, saving, run.cfg.guard
        self._findings: Sequence[Finding] = ()
        """Of the last step."""

    def accepts(self, loss: float, grad_norm: float) -> bool:
        """Whether a step with these numbers gets its update. Changes nothing."""
        return not refuses(judge(self.cfg, self.run.state.health, loss, grad_norm))

    def notice(self, report: StepReport) -> None:
        """Take the step into the state of the run, which has counted it."""
        state = self.run.state
        if not report.plan.targets:  # such a step has no loss to compare
            self._findings = ()
            return
        self._findings = judge(self.cfg, state.health, report.loss, report.grad_norm)
        open_before = state.health.incident
        notice(self.cfg, state.health, state.step, self._findings, loss=report.loss, grad_norm=report.grad_norm)
        state.spikes += any(each.what != "non_finite" for each in self._findings)
        if open_before and not state.health.incident:
            self.run.tracker.event("recovered", step=state.step, incident=open_before)

    def act(self, report: StepReport) -> None:
        """Say what is to be said of the step that was noticed; go back, or end the run. Collective.

        Raises InternalError (70) where the actions of ``guard`` say so, and after the last step of a run that has
        learnt nothing; StorageError (74) if the checkpoint to go back to cannot be read.
        """
        run, health = self.run, self.run.state.health
        if self._findings:
            self._say(report)
        asked = {each.action for each in self._findings}
        if "stop" in asked:
            self._end(f"{self._what()}, and guard says stop")
        if asked & {"skip", "rollback"} and len(health.refused) >= self.cfg.patience:
            if "rollback" in asked:
                self._go_back()
            else:
                self._end(self._many())
        if run.state.step == run.total_steps:
            why = unlearnt(run.state.step, run.engine.optimizer_steps, health, int(run.model_config["vocab_size"]))
            if why:
                self._end(f"the run ends after step {run.state.step} and is no success: {why}")

    def _what(self) -> str:
        return " and ".join(described(each, self.run.state.step) for each in self._findings)

    def _say(self, report: StepReport) -> None:
        run, health = self.run, self.run.state.health
        refused = refuses(self._findings)
        if not refused and health.bad & (health.bad - 1):  # of those that are only warned of: the 1st, 2nd, 4th, 8th
            return
        file = ""
        if run.ranks.is_main and health.bad <= self.cfg.patience:
            file = dump(run.run_dir, run.state.step, report.plan, run.splits, run.tokenizer)
        for each in self._findings:
            if each.what != "non_finite":
                figures = {"value": each.value, "median": each.median, "limit": each.limit}
                run.tracker.event("spike", step=run.state.step, what=each.what, **figures, updated=not refused)
        settings = ", ".join(f"guard.{each.what}={each.action}" for each in self._findings)
        done = "no update was made" if refused else "the update was made"
        more = f"; bad step {health.bad} since step {health.incident}" if health.bad > 1 else ""
        warn(run, f"{self._what()}; {done} ({settings}){more}" + (f"; its samples are in {file}" if file else ""))

    def _many(self) -> str:
        cfg, state = self.cfg, self.run.state
        return (
            f"{len(state.health.refused)} of the last {min(cfg.window, state.step)} steps made no update, the last one "
            f"because {self._what()}"
        )

    def _end(self, why: str) -> None:
        self.saving.settle()  # of a step before these
        incident = self.run.state.health.incident
        kept = self.run.ranks.once(lambda: _kept(self.run.run_dir, incident))
        raise InternalError(
            f"{why}; lower optim.lr, or look at the samples in {self.run.run_dir / 'incidents'} and in the skip events "
            f"of {self.run.run_dir / 'events.jsonl'}; {kept}"
        )

    def _go_back(self) -> None:
        run, state, health = self.run, self.run.state, self.run.state.health
        self.saving.settle()
        if not run.ranks.once(lambda: steps_before(run.run_dir, health.incident)):
            self._end(f"{self._many()}, and the run cannot go back: nothing was saved before step {health.incident}")
        if state.rollbacks >= self.cfg.max_rollbacks:
            self._end(f"{self._many()}, and the run has gone back guard.max_rollbacks={state.rollbacks} times already")
        why = self._many()
        heart.enter(Phase.CHECKPOINT)
        updates = run.engine.optimizer_steps
        to = self._restore()
        run.ranks.once(lambda: withdraw(run.run_dir, to))
        self.saving.saved_at = to
        state.rollbacks += 1
        state.undone += updates - run.engine.optimizer_steps
        health.refused, health.returned = [], True
        undone = [to + 1, state.step]
        if run.ranks.is_main:
            append(run.run_dir / "ledger.jsonl", {"step": state.step, "undone": undone})
        run.tracker.event("rollback", step=state.step, to=to, undone=undone, incident=health.incident)
        warn(
            run,
            f"{why}: the run went back to the checkpoint of step {to} and goes on with step "
            f"{state.step + 1}; what steps {undone[0]} to {undone[1]} learnt is undone and their data passed over "
            f"(rollback {state.rollbacks} of at most {self.cfg.max_rollbacks})",
        )

    def _restore(self) -> int:
        """Restore the newest good checkpoint from before the incident; returns its step. Collective."""
        run = self.run
        while True:
            stored = newest_good(run.run_dir, run.ranks, before=run.state.health.incident)
            try:
                with stored:
                    steps = stored.manifest["optimizer_steps"]
                    run.engine.restore(stored.read, stored.shapes, steps, stored.extras)
            except Damaged as fault:
                pass_over(run.run_dir, stored.path, str(fault), run.ranks)
            else:
                return stored.step


def _kept(run_dir: Path, incident: int) -> str:
    """Which checkpoint a run that ends badly leaves, as a clause."""
    good, later = steps_before(run_dir, incident)[:1], steps_on_disk(run_dir)
    if not good:
        return "no checkpoint is from before"
    later = [step for step in later if step > good[0]]
    names = ", ".join(f"step-{step:08d}" for step in reversed(later))
    way = f"; remove {names} from its checkpoints to start again from there" if later else ""
    return f"the checkpoint of step {good[0]} is {'from before' if incident else 'the newest'}{way}"


def described(finding: Finding, step: int) -> str:
    """What is bad, as a clause."""
    if finding.what == "non_finite":
        return f"the loss or a gradient of step {step} is not finite"
    name = "the loss" if finding.what == "loss" else "the gradient norm"
    return (
        f"{name} of step {step} is {finding.value:,.4g}, and the median of the {finding.count} steps before "
        f"{finding.median:,.4g} (limit {finding.limit:,.4g})"
    )
