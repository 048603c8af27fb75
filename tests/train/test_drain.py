"""The order of a run: the checkpoint before the evaluation, no save of a step that was skipped, honest endings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conf.errors import InternalError, Requeue
from conf.schema import GuardConfig
from train import main
from train.ranks.step import Signs
from train.recording import Saving
from train.state import TrainState


class Tracker:
    def event(self, *_: Any, **__: Any) -> None: ...

    def note(self, text: str) -> None: ...

    def log(self, step: int, metrics: Any) -> None: ...


RANKS = SimpleNamespace(
    is_main=False, world=1, sum=lambda values: [float(each) for each in values], once=lambda work: work()
)


def parts(step: int = 0, **others: Any) -> Any:
    """A run that computes nothing."""
    cfg = SimpleNamespace(
        evaluation=SimpleNamespace(at_start=False, at_end=True, every_steps=0, max_new_tokens=1),
        checkpoint=SimpleNamespace(every_steps=2, every_minutes=0.0, keep=2, background="never", copy_to=""),
        guard=GuardConfig(patience=4),
    )
    return SimpleNamespace(
        state=TrainState(step=step), cfg=cfg, tracker=Tracker(), ranks=RANKS, attempt=0, run_dir=Path("run"),
        engine=SimpleNamespace(module=None, optimizer_steps=0), corpus=None, tokenizer=None, attention=None,
        model_config={"vocab_size": 1000}, copier=None, **others,
    )  # fmt: skip


def drained(
    monkeypatch: pytest.MonkeyPatch, total: int, *, skip: tuple[int, ...] = (), stop: int = 0, evaluate_every: int = 0
) -> list[str]:
    """What a run of ``total`` steps does; steps ``skip`` are skipped, and it is asked to stop in step ``stop``."""
    done: list[str] = []
    run = parts(finished=False, total_steps=total, stream=SimpleNamespace(names=()))
    run.cfg.evaluation.every_steps = evaluate_every
    state = run.state

    def steps(*_: Any) -> Iterator[Any]:
        for step in range(1, total + 1):
            bad = step in skip
            run.engine.optimizer_steps += not bad
            yield SimpleNamespace(
                skipped=bad,
                signs=Signs(stop=step == stop),
                loss=2.0,
                grad_norm=math.inf if bad else 1.0,
                plan=SimpleNamespace(targets=1),
            )

    def count(state: Any, report: Any, _: Any) -> None:
        state.step += 1
        state.skipped += report.skipped

    def save(self: Saving, *, must: bool = False) -> None:
        self.saved_at = state.step
        done.append(f"save {state.step}")

    monkeypatch.setattr(main, "steps", steps)
    monkeypatch.setattr(main, "count", count)
    monkeypatch.setattr(main, "record", lambda *_: None)
    monkeypatch.setattr(main, "compare_memory", lambda _: None)
    monkeypatch.setattr(main, "evaluate", lambda *_: done.append(f"evaluate {state.step}"))
    monkeypatch.setattr(Saving, "save", save)
    try:
        main.drain(run, SimpleNamespace(reason="SIGTERM"))  # type: ignore[arg-type]
    except (Requeue, InternalError) as error:
        done.append(f"{error.code}: {error}")
    return done


def test_the_checkpoint_comes_before_the_evaluation_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drained(monkeypatch, 5, evaluate_every=2) == [
        "save 2", "evaluate 2", "save 4", "evaluate 4", "save 5", "evaluate 5",
    ]  # fmt: skip


def test_a_skipped_step_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drained(monkeypatch, 5, skip=(3, 4)) == ["save 2", "save 5", "evaluate 5"]
    stopped = drained(monkeypatch, 9, skip=(3,), stop=3)
    assert stopped == ["save 2", "75: stopped at step 3 because of SIGTERM; the newest on disk is that of step 2"]


def test_a_save_that_is_due_waits_until_the_run_is_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four good steps: ``patience``. One before a stop does not wait, unless its own step was skipped."""
    assert drained(monkeypatch, 11, skip=(3,)) == ["save 2", "save 7", "save 8", "save 10", "save 11", "evaluate 11"]
    stopped = drained(monkeypatch, 9, skip=(3,), stop=5)
    assert stopped == ["save 2", "save 5", "75: stopped with a checkpoint of step 5 because of SIGTERM"]


def test_a_stop_saves_and_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drained(monkeypatch, 9, stop=3, evaluate_every=3) == [
        "save 2", "save 3", "75: stopped with a checkpoint of step 3 because of SIGTERM",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("total", "skip", "why"),
    [
        (3, (1, 2, 3), "the run ends after step 3 and is no success: only 0 of its 3 steps made an update that stayed"),
        (6, (5, 6), "the run ends after step 6 and is no success: its last two steps made no update"),
        (30, tuple(range(5, 30)), "4 of the last 8 steps made no update, the last one because the loss or a gradient"),
    ],
)
def test_a_run_that_learns_nothing_is_no_success(
    monkeypatch: pytest.MonkeyPatch, total: int, skip: tuple[int, ...], why: str
) -> None:
    *before, last = drained(monkeypatch, total, skip=skip)
    assert last.startswith(f"70: {why}"), last
    assert before == (["save 2", "save 4"] if total > 4 else [])


@pytest.mark.parametrize(("step", "code"), [(0, None), (3, 70)])
def test_a_held_out_loss_that_is_not_finite_is_no_success(
    monkeypatch: pytest.MonkeyPatch, step: int, code: int | None
) -> None:
    """After training; before it, it says something of the base, which may be untrained."""
    run, stop = parts(step), SimpleNamespace(pending=lambda: False)
    monkeypatch.setattr(main, "evaluate_all", lambda *_, **__: ({"eval/loss": float("nan")}, []))
    if code is None:
        main.evaluate(run, Saving(run), stop)  # type: ignore[arg-type]
        return
    with pytest.raises(InternalError, match="the held-out loss after step 3 is not finite"):
        main.evaluate(run, Saving(run), stop)  # type: ignore[arg-type]


def test_a_request_to_stop_ends_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    run = parts(4)
    monkeypatch.setattr(main, "evaluate_all", lambda *_, check, **__: check())
    stop: Any = SimpleNamespace(pending=lambda: True, reason="SIGUSR1")
    with pytest.raises(Requeue, match="stopped with a checkpoint of step 4 because of SIGUSR1, during an evaluation"):
        main.evaluate(run, Saving(run, saved_at=4), stop)
