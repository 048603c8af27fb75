"""A run whose checkpoints are gone never begins again at step 0 by itself; one that never had any does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from conf.errors import CannotCreate, CorralError, MissingInput, StorageError
from conf.schema import ModelConfig, ResumeConfig
from tests.tiny import tiny_run
from train.checkpoint.resume import find_start
from train.ranks.group import Ranks

START = {"time": 1.0, "kind": "start", "step": 0}
SAVED = {"time": 2.0, "kind": "checkpoint", "step": 3, "path": "x", "bytes": 1}
RESUMED = {"time": 3.0, "kind": "resume", "step": 3}
FAILED = {"time": 2.0, "kind": "checkpoint_failed", "step": 3, "reason": "full"}


def write(path: Path, *objects: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in objects))


def start(run_dir: Path, resume: Literal["auto", "must", "never"] = "auto") -> object:
    """None: the run begins at step 0."""
    cfg = replace(tiny_run(run_dir, ModelConfig(path="x")), resume=ResumeConfig(mode=resume))
    return find_start(cfg, run_dir, Ranks())


def test_a_run_without_checkpoints_in_its_records_begins_at_step_0(tmp_path: Path) -> None:
    assert start(tmp_path) is None
    write(tmp_path / "events.jsonl", START)
    write(tmp_path / "ledger.jsonl", {"step": 1}, {"step": 2})
    assert start(tmp_path) is None  # killed before the first checkpoint
    write(tmp_path / "events.jsonl", START, FAILED)
    assert start(tmp_path) is None
    with pytest.raises(MissingInput, match="holds no checkpoint and resume=must"):
        start(tmp_path, "must")


@pytest.mark.parametrize("events", [[START, SAVED], [START, SAVED, START], [RESUMED]])
@pytest.mark.parametrize("resume", ["auto", "must"])
def test_deleted_checkpoints_are_74_by_the_events(
    tmp_path: Path, events: list[dict[str, Any]], resume: Literal["auto", "must"]
) -> None:
    write(tmp_path / "events.jsonl", *events)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": 9.0, "ki')  # a crash cut this line
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(StorageError, match=r"events\.jsonl says that there was one at step 3;"):
        start(tmp_path, resume)


def test_deleted_checkpoints_and_events_are_74_by_the_ledger(tmp_path: Path) -> None:
    write(tmp_path / "ledger.jsonl", {"step": 1}, {"step": 2})
    with pytest.raises(StorageError, match=r"ledger\.jsonl has steps, while events\.jsonl, .* is gone;") as caught:
        start(tmp_path)
    assert caught.value.code == 74
    (tmp_path / "ledger.jsonl").rename(tmp_path / "metrics.jsonl")
    with pytest.raises(StorageError, match=r"metrics\.jsonl has steps, while"):
        start(tmp_path)


@pytest.mark.parametrize("content", [b"", bytes(4096), b'{"time": 1.0, "ki'])
def test_events_that_a_disk_has_lost_say_nothing_of_checkpoints(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "ledger.jsonl", {"step": 1}, {"step": 2})
    (tmp_path / "events.jsonl").write_bytes(content)
    with pytest.raises(StorageError, match=r"while events\.jsonl, .* is empty or damaged;"):
        start(tmp_path)


def test_a_new_run_is_not_begun_in_the_folder_of_an_old_one(tmp_path: Path) -> None:
    write(tmp_path / "events.jsonl", START, SAVED)
    with pytest.raises(CannotCreate, match="resume=never"):
        start(tmp_path, "never")


def test_a_damaged_name_of_the_folder_is_history(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".corrupt-step-00000003-1").mkdir(parents=True)
    with pytest.raises(CorralError, match="no checkpoint that verifies") as caught:
        start(tmp_path)
    assert caught.value.code == 74
