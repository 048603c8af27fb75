"""Alerts: which events reach people through W&B, read back from the .wandb file of an offline run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from conf.schema import TrackerConfig
from tests.end_to_end.commands import call, lines, tiny_run
from tests.train.tracking.wandb_files import all_records
from train.tracking import wandb_tracker
from train.tracking.alerts import KINDS, WAIT_S, Alert, Alerts, before_start
from train.tracking.wandb_tracker import WandbTracker

FAILED = {"step": 4, "reason": "No space left on device"}


def alerts_in(run_dir: Path) -> list[tuple[str, str, str]]:
    """(level, title, text) of every alert that W&B has recorded, of one attempt after the other."""
    files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert files
    records = [record for path in files for record in all_records(path)]
    found = [record.alert for record in records if record.HasField("alert")]
    assert all(each.wait_duration == WAIT_S * 1000 for each in found)
    return [(each.level, each.title, each.text) for each in found]


def test_failed_checkpoints_are_an_alert_after_two_in_a_row() -> None:
    alerts = Alerts()
    assert alerts.of_event("checkpoint_failed", FAILED) is None
    assert alerts.of_event("checkpoint", {"step": 5}) is None
    assert alerts.of_event("checkpoint_failed", FAILED) is None
    assert alerts.of_event("note", {"text": "x"}) is None
    assert alerts.of_event("checkpoint_failed", FAILED) == Alert(
        "Checkpoints fail", "2 in a row, the last of step 4: No space left on device", "ERROR"
    )


def test_one_title_is_one_alert_in_ten_minutes() -> None:
    now = [0.0]
    alerts = Alerts(clock=lambda: now[0])
    skip = {"step": 3, "grad_norm": "nan", "samples": []}
    assert alerts.of_event("skip", skip) == Alert("A step made no update", "step 3: gradient norm nan", "WARN")
    for now[0] in range(1, 600):
        assert alerts.of_event("skip", skip) is None
    assert alerts.of_event("end", {"step": 9}) is not None  # another title
    now[0] = 600.0
    (again,) = [alerts.of_event("skip", skip)]
    assert again is not None
    assert again.text == "step 3: gradient norm nan (and 599 times before, since the last alert)"


def test_titles_are_what_wandb_takes() -> None:
    assert all(0 < len(title) < 64 for _, title, _ in KINDS.values())


def test_what_happened_before_the_start_is_found(tmp_path: Path) -> None:
    assert list(before_start(tmp_path)) == []
    events: list[dict[str, Any]] = [
        {"kind": "fallback", "step": 1, "reason": "told by the attempt before"},
        {"kind": "resume", "step": 0},
        {"kind": "hang", "step": 7, "text": "rank 1 is stopped"},
        {"kind": "fallback", "step": 6, "reason": "broken"},
    ]
    text = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / "events.jsonl").write_text(text + '{"kind": "ha')
    assert [(kind, fields["step"]) for kind, fields in before_start(tmp_path)] == [("hang", 7), ("fallback", 6)]


def test_alerts_are_recorded_and_cost_training_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "do-not-show-me-1234")
    (tmp_path / "events.jsonl").write_text(json.dumps({"kind": "hang", "step": 7, "text": "rank 1 is stopped"}) + "\n")
    notes: list[str] = []
    tracker = WandbTracker(tmp_path, "r", TrackerConfig(wandb="offline"), {}, notes.append)
    began = time.perf_counter()
    for _ in range(1000):
        tracker.event("skip", step=3, grad_norm="nan", samples=[])
        tracker.event("checkpoint_failed", **FAILED)
    tracker.event("config_changed", step=3, changed={"model.path": ["a", "b?k=do-not-show-me-1234"]})
    tracker.event("data_changed", step=3, changed=["source a: other content"])
    assert time.perf_counter() - began < 1.0
    (tmp_path / "exit.json").write_text(json.dumps({"code": 75, "reason": "stopped with a checkpoint of step 8"}))
    tracker.close(75)
    assert not tracker.thread.is_alive(), notes
    assert [note.partition(";")[0] for note in notes] == ["W&B: the run was recorded offline"], notes
    found = alerts_in(tmp_path)
    assert [title for _, title, _ in found] == [
        "A rank hung",
        "A step made no update",
        "Checkpoints fail",
        "Settings changed",
        "The order of samples changed",
        "The run was stopped and wants to be started again",
    ]
    assert found[0] == ("ERROR", "A rank hung", "rank 1 is stopped")
    assert found[3][2].startswith("model.path: a -> b?k=")
    assert "do-not-show-me" not in str(found)
    assert found[5][2] == "stopped with a checkpoint of step 8"


def test_a_full_queue_never_waits_for_an_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tracker, "QUEUE_SIZE", 1)
    monkeypatch.setattr(WandbTracker, "start", lambda self: None)
    tracker = WandbTracker(tmp_path, "r", TrackerConfig(wandb="offline"), {}, lambda text: None)
    tracker.log(1, {})
    tracker.event("end", step=1)
    assert tracker.lost == 1
    tracker.close(0)


@pytest.mark.slow
def test_a_run_that_passes_a_checkpoint_over_changes_and_ends(tmp_path: Path) -> None:
    """Real runs: the first ends well, the second falls back, goes on with another rate and cannot read its config."""
    few = ("evaluation=skip", "tracker=wandb_offline", "checkpoint.every_steps=2", "schedule.max_steps=4")
    code, output = call("data_prep", *tiny_run(tmp_path, "run"))
    assert code == 0, output
    code, output = call("train", *tiny_run(tmp_path, "run", *few, "tracker.wandb=offline"))
    assert code == 0, output
    assert alerts_in(tmp_path / "run") == [("INFO", "The run has finished", "after step 4")]
    next((tmp_path / "run" / "checkpoints" / "step-00000004").glob("state-*")).write_bytes(b"broken")
    more = (*few, "tracker.wandb=offline", "optim.lr=1e30", "resume.allow=[optim.lr]", "schedule.max_steps=40")
    code, output = call("train", *tiny_run(tmp_path, "run", *more))
    assert code == 70, output
    found = alerts_in(tmp_path / "run")[1:]
    assert found[0][1] == "A checkpoint was passed over"
    assert found[0][2].startswith("step 4: state-")
    assert found[1][1] == "Settings changed"
    assert "optim.lr: 0.01 -> 1e+30" in found[1][2]
    assert found[-1][:2] == ("ERROR", "The run failed (exit code 70)")
    assert "fallback" in [line["kind"] for line in lines(tmp_path / "run" / "events.jsonl")]
    assert found[-1][2] == json.loads((tmp_path / "run" / "exit.json").read_text())["reason"]
