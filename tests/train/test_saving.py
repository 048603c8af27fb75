"""A run that is asked to stop says 75 only where starting again loses nothing unsaid; saves that fail are told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from conf.errors import Requeue, StorageError
from train import checkpoint, recording
from train.assembly import cut_back
from train.checkpoint import Failed, Outcome, Published
from train.checkpoint.resume import MadeFrom
from train.ranks.group import Ranks
from train.recording import MOST_FAILED, Saving
from train.state import TrainState


class Tracker:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.notes: list[str] = []

    def event(self, kind: str, **_: Any) -> None:
        self.events.append(kind)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def sync(self) -> None: ...

    def log(self, step: int, metrics: Any) -> None: ...


@pytest.fixture
def run(tmp_path: Path) -> Any:
    cfg = SimpleNamespace(checkpoint=SimpleNamespace(keep=2, background="never", every_steps=0, every_minutes=0.0))
    state = TrainState()
    return SimpleNamespace(
        cfg=cfg, run_dir=tmp_path, state=state, tracker=Tracker(), engine=None, ranks=Ranks(), attempt=0,
        made_from=MadeFrom("", {}, "", []),
        stream=SimpleNamespace(state_dict=dict), config={}, copier=None,
    )  # fmt: skip


class Saver:
    """Stands in for the one that writes: ``found`` are the outcomes of its saves, a reason or None for a success."""

    background, grew, left = "never", 0.0, ""
    found: ClassVar[list[str | None]] = []

    def __init__(self, *_: Any, **__: Any) -> None:
        self.step: int | None = None

    def begin(self, step: int, _: Any, incident: int = 0) -> None:
        self.step = step

    def finish(self) -> Outcome | None:
        step, self.step = self.step, None
        if step is None:
            return None
        reason = self.found.pop(0)
        return Failed(step, reason) if reason else Published(step, Path("x"), 9, left=self.left)


def outcomes(monkeypatch: pytest.MonkeyPatch, *found: str | None) -> None:
    monkeypatch.setattr(Saver, "found", list(found))
    monkeypatch.setattr(checkpoint, "Saver", Saver)


def test_checkpointed_is_said_only_of_a_checkpoint(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    full = "rank 1 cannot write: No space left on device"
    outcomes(monkeypatch, full, None, full)
    saves = Saving(run)
    assert isinstance(saves.stopped("SIGTERM"), Requeue)
    assert str(saves.stopped("SIGTERM")) == "stopped before its first step because of SIGTERM"
    run.state.step = 6
    saves.save()
    lost = saves.stopped("SIGTERM")
    assert isinstance(lost, StorageError)
    assert str(lost) == (
        f"stopped at step 6 because of SIGTERM, and nothing is saved; the checkpoint of step 6 could not be written: "
        f"{full}; free some space and start the run again (none is on disk)"
    )
    run.state.step = 8
    saves.save()
    assert str(saves.stopped("SIGUSR1")) == "stopped with a checkpoint of step 8 because of SIGUSR1"
    run.state.step = 12
    saves.save()
    told = saves.stopped("SIGTERM")
    assert isinstance(told, Requeue)
    assert str(told).endswith(
        f"the checkpoint of step 12 could not be written: {full}; the newest on disk is that of step 8"
    )


def test_a_checkpoint_of_which_a_rank_has_not_been_told_counts(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank's thread renames it; the others hear of it at the next boundary, which a second SIGTERM skips."""
    outcomes(monkeypatch)
    saves = Saving(run)
    run.state.step = 7
    assert isinstance(saves.stopped("a second SIGTERM"), StorageError)
    (run.run_dir / "checkpoints" / "step-00000006").mkdir(parents=True)
    told = saves.stopped("a second SIGTERM")
    assert isinstance(told, Requeue)
    assert str(told) == "stopped at step 7 because of a second SIGTERM; the newest on disk is that of step 6"


def test_saves_that_fail_are_told_and_end_the_run_after_some(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes(monkeypatch, *["no space"] * MOST_FAILED)
    saves = Saving(run, saved_at=4)
    for run.state.step in range(5, 4 + MOST_FAILED):
        saves.save()
    with pytest.raises(StorageError, match=f"{MOST_FAILED} checkpoints in a row could not be written: no space; free"):
        saves.save()
    assert run.tracker.events.count("checkpoint_failed") == MOST_FAILED
    assert run.tracker.notes[0] == (
        "warning: the checkpoint of step 5 could not be written: no space; the newest on disk is that of step 4"
    )


def test_what_failed_after_the_rename_is_told_of_a_checkpoint_that_is_there(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes(monkeypatch, None)
    monkeypatch.setattr(Saver, "left", "x is published, but ...")
    run.state.step = 5
    saves = Saving(run)
    saves.save(must=True)
    assert run.tracker.events == ["checkpoint", "warning"]
    assert run.tracker.notes == ["warning: x is published, but ..."]
    assert (saves.saved_at, saves.failed) == (5, 0)


def test_the_last_save_must_hold(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes(monkeypatch, "no space")
    with pytest.raises(StorageError, match="the last checkpoint could not be written: no space"):
        Saving(run).save(must=True)


def test_versions_are_those_of_the_libraries() -> None:
    assert {"torch", "deepspeed"} <= recording.versions().keys()


def test_a_ledger_that_lost_lines_before_the_checkpoint_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, events = tmp_path / "ledger.jsonl", tmp_path / "events.jsonl"
    steps = [json.dumps({"step": step, "digest": "0" * 32}) + "\n" for step in (1, 2, 3, 4, 5)]
    undone = json.dumps({"step": 3, "undone": [2, 3]}) + "\n"
    ledger.write_text("".join([*steps[:3], undone, *steps[3:]]))
    cut_back(tmp_path, 4, Ranks())
    assert json.loads(events.read_text())["removed"] == {"metrics.jsonl": 0, "ledger.jsonl": 1}
    ledger.write_text("".join([*steps[:2], undone, steps[3]]))
    cut_back(tmp_path, 4, Ranks())
    assert f"warning: {ledger} holds 3 of the 4 steps until the checkpoint" in capsys.readouterr().out
    assert json.loads(events.read_text().splitlines()[-1])["kind"] == "warning"
    ledger.unlink()
    cut_back(tmp_path, -1, Ranks())  # a run from its beginning
    assert not capsys.readouterr().out
