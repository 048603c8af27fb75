"""Every fault point: killed there, a run goes on as if nothing had been; a disk that refuses there loses nothing."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.end_to_end.commands import finish as finished
from tests.end_to_end.commands import lines, tiny_run, torchrun
from tests.faults.judge import exit_record, newest_step, result_of
from tests.faults.plans import FULL_DISK, Attack
from tests.faults.soak import COMMON, Soak
from train.process.faultpoint import POINTS

pytestmark = [pytest.mark.faults, pytest.mark.soak]
FULL = "ZeRO 2, full"
SAVES = [point for point in POINTS if point.startswith("checkpoint")]
COLLECTIVE = ("checkpoint.begin", "checkpoint.before_exchange", "checkpoint.before_outcome")
"""Where no disk is asked for anything."""
AFTER = {
    "checkpoint.before_latest": "its name may not outlast a power cut",
    "checkpoint.before_prune": "could not be deleted",
    "checkpoint.in_prune": "could not be deleted",
}
"""Where the checkpoint is published."""


def test_a_forked_run_is_the_run_of_the_command(soak: Soak) -> None:
    """Bit for bit, so what the soak shows is true of the command."""
    arguments = tiny_run(soak.folder, "command", *COMMON, *soak.variants[FULL])
    code, output = finished(torchrun(2, *arguments), 120)
    assert code == 0, output
    assert result_of(soak.folder / "command", soak.verified) == soak.whole(FULL)[0]


@pytest.mark.parametrize("point", POINTS)
def test_killed_once_and_resumed(soak: Soak, point: str) -> None:
    name = f"killed-{point}"
    ended, at = soak.attempt(FULL, name, Attack(point, f"point={point},action=SIGKILL"))
    assert at is not None, ended.output
    assert -9 in ended.codes
    assert max(ended.times) - at < 10.0
    ended, _ = soak.attempt(FULL, name)
    assert soak.wrong_at_end(FULL, name, ended) == []
    shutil.rmtree(soak.folder / name)


@pytest.mark.parametrize("action", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("point", [point for point in SAVES if point not in COLLECTIVE])
def test_a_disk_that_refuses_once(soak: Soak, point: str, action: str) -> None:
    """The save fails on all ranks alike, or is published; training goes on, and the next save is whole."""
    name = f"{action}-{point}"
    ended, _ = soak.attempt(FULL, name, Attack(point, f"point={point},nth=2,action={action},rank=0"))
    assert soak.wrong_at_end(FULL, name, ended) == []
    said = AFTER.get(point, "could not be written")
    assert ended.output.count(said) == 1, ended.output
    events = lines(soak.folder / name / "events.jsonl")
    failed = [event for event in events if event["kind"] == "checkpoint_failed"]
    assert len(failed) == (0 if point in AFTER else 1), failed
    shutil.rmtree(soak.folder / name)


def test_a_full_disk_ends_the_run_after_five_saves_and_nothing_is_claimed(soak: Soak) -> None:
    ended, _ = soak.attempt(FULL, "full", Attack("nowhere", FULL_DISK))
    assert ended.codes == [74, 74], ended.output
    record = exit_record(soak.folder / "full")
    assert record["code"] == 74
    assert "5 checkpoints in a row could not be written" in record["reason"]
    assert "none is on disk" in record["reason"]
    assert newest_step(soak.folder / "full") == 0
    ended, _ = soak.attempt(FULL, "full")
    assert soak.wrong_at_end(FULL, "full", ended) == []


def test_a_request_to_stop_on_a_full_disk_is_no_checkpoint(soak: Soak) -> None:
    plan = f"{FULL_DISK};point=step.recorded,step=3,rank=1,action=SIGTERM"
    ended, at = soak.attempt(FULL, "stopped", Attack("step.recorded", plan))
    assert at is not None
    assert ended.codes == [74, 74], ended.output
    assert "and nothing is saved" in exit_record(soak.folder / "stopped")["reason"]
    ended, _ = soak.attempt(FULL, "stopped")
    assert soak.wrong_at_end(FULL, "stopped", ended) == []


@pytest.mark.parametrize(
    "point", ["step.before_update", "checkpoint.before_exchange", "evaluation.losses", "start.model"]
)
def test_a_stopped_rank_is_named_and_the_run_goes_on_from_its_checkpoint(soak: Soak, point: str) -> None:
    name, more = f"stopped-{point}", ("watchdog.seconds=3",)
    plan = f"rank=1,point={point},action=SIGSTOP"
    ended, _ = soak.attempt(FULL, name, Attack(point, plan), more)
    assert ended.codes == [-9, -9], ended.output
    record = exit_record(soak.folder / name)
    assert record["code"] == 76, record
    assert "is stopped by a signal" in record["reason"]
    assert "rank 1 (process" in record["reason"]
    assert max(ended.times) < 30.0
    ended, _ = soak.attempt(FULL, name, None, more)
    assert soak.wrong_at_end(FULL, name, ended) == []


def test_a_defect_is_70_and_its_peer_76(soak: Soak) -> None:
    ended, _ = soak.attempt(FULL, "defect", Attack("step", "rank=1,point=step.after_update,step=5,action=raise"))
    assert ended.codes == [76, 70], ended.output
    assert json.loads((soak.folder / "defect" / "exit.json").read_text())["code"] == 70
    ended, _ = soak.attempt(FULL, "defect")
    assert soak.wrong_at_end(FULL, "defect", ended) == []
