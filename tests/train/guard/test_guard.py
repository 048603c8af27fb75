"""What follows from bad steps: a rollback that is recorded, a limit of them, and endings that are no success."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conf.errors import InternalError
from conf.schema import GuardConfig
from train.checkpoint.layout import steps_before, steps_on_disk
from train.guard import guard
from train.guard.guard import Guard
from train.ranks.group import Ranks
from train.state import TrainState


class Stored:
    """A checkpoint whose every step made an update."""

    shapes, extras, read = None, None, None

    def __init__(self, step: int) -> None:
        self.step, self.manifest = step, {"optimizer_steps": step}

    def __enter__(self) -> Stored:
        return self

    def __exit__(self, *_: object) -> None: ...


class Tracker:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})

    def note(self, text: str) -> None:
        self.notes.append(text)


class Played:
    """A run of one rank that has checkpoints of two steps, and whose steps have the numbers that it is given."""

    def __init__(
        self, run_dir: Path, *, total_steps: int = 100, saved: tuple[int, int] = (2, 4), **settings: Any
    ) -> None:
        for step in saved:
            (run_dir / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        self.tracker, self.state = Tracker(), TrainState()
        self.saving = SimpleNamespace(saved_at=saved[-1], settle=lambda: None)
        self.engine = SimpleNamespace(optimizer_steps=0, restore=self._restore)
        run = SimpleNamespace(
            cfg=SimpleNamespace(guard=GuardConfig(patience=2, window=10, **settings)),
            run_dir=run_dir, ranks=Ranks(), state=self.state, tracker=self.tracker, engine=self.engine,
            total_steps=total_steps, model_config={"vocab_size": 1000}, splits=[], tokenizer=None,
        )  # fmt: skip
        self.guard = Guard(run, self.saving)  # type: ignore[arg-type]

    def _restore(self, read: Any, shapes: Any, steps: int, extras: Any) -> None:
        self.engine.optimizer_steps = steps

    def steps(self, *losses: float) -> None:
        for loss in losses:
            self.state.step += 1
            self.engine.optimizer_steps += self.guard.accepts(loss, 1.0)
            report: Any = SimpleNamespace(plan=SimpleNamespace(targets=1), loss=loss, grad_norm=1.0)
            self.guard.notice(report)
            self.guard.act(report)


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "newest_good", lambda run_dir, _, before: Stored(steps_before(run_dir, before)[0]))
    monkeypatch.setattr(guard, "dump", lambda *_: "")


def test_a_rollback_is_in_the_ledger_the_events_and_the_state_and_undoes_the_later_checkpoints(tmp_path: Path) -> None:
    run = Played(tmp_path)
    run.steps(2.0, 2.0, 2.0, 2.0, math.nan, math.nan)
    assert json.loads((tmp_path / "ledger.jsonl").read_text()) == {"step": 6, "undone": [3, 6]}
    (event,) = [each for each in run.tracker.events if each["kind"] == "rollback"]
    assert event == {"kind": "rollback", "step": 6, "to": 2, "undone": [3, 6], "incident": 5}
    assert steps_on_disk(tmp_path) == [2]
    assert (run.saving.saved_at, run.engine.optimizer_steps) == (2, 2)
    assert (run.state.rollbacks, run.state.undone, run.state.health.refused) == (1, 2, [])
    run.steps(2.0, 2.0)
    assert [each["kind"] for each in run.tracker.events][-1] == "recovered"


def test_the_run_goes_back_no_more_often_than_it_may(tmp_path: Path) -> None:
    run = Played(tmp_path, max_rollbacks=1)
    run.steps(2.0, 2.0, 2.0, 2.0, math.nan, math.nan, math.nan)
    with pytest.raises(InternalError, match=r"gone back guard\.max_rollbacks=1 times already"):
        run.steps(math.nan)
    assert run.state.rollbacks == 1
    (tmp_path / "none").mkdir()
    with pytest.raises(InternalError, match=r"max_rollbacks=0 times already"):
        Played(tmp_path / "none", max_rollbacks=0).steps(2.0, 2.0, 2.0, 2.0, math.nan, math.nan)


def test_a_run_that_ends_too_soon_after_it_went_back_is_no_success(tmp_path: Path) -> None:
    bad = [*[2.0] * 12, math.nan, math.nan]
    run = Played(tmp_path, total_steps=15, saved=(10, 12))
    with pytest.raises(InternalError, match=r"ends after step 15 and is no success: it went back, and ended too soon"):
        run.steps(*bad, 2.0)
    assert run.state.rollbacks == 1
    (tmp_path / "longer").mkdir()
    Played(tmp_path / "longer", total_steps=16, saved=(10, 12)).steps(*bad, 2.0, 2.0)


@pytest.mark.parametrize(("action", "end"), [("warn", ""), ("stop", "guard says stop"), ("skip", "made no update")])
def test_every_action_does_what_it_says(tmp_path: Path, action: str, end: str) -> None:
    run = Played(tmp_path, loss=action)
    before = [2.0, 2.1, 1.9, 2.0, 2.0]
    if not end:
        run.steps(*before, 900.0, 900.0)
        assert run.engine.optimizer_steps == 7
        return
    with pytest.raises(InternalError, match=end):
        run.steps(*before, 900.0, 900.0)
    assert run.engine.optimizer_steps == 5
    assert run.state.step == (6 if action == "stop" else 7)
