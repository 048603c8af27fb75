"""A real watchdog over played ranks: who is ended, when, with which words, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conf.attempts.owner import LEAVES_S, own
from tests.launch.conftest import alive, processes_with, read_pids, until
from train.watchdog.board import SHARED_MEMORY

pytestmark = pytest.mark.faults

PLAYED = Path(__file__).with_name("played.py")


class Group:
    """A played torchrun with its ranks."""

    def __init__(self, run_dir: Path, seconds: int, *acts: str) -> None:
        run_dir.mkdir(exist_ok=True)
        self.run_dir = run_dir
        self.errors = run_dir / "stderr"
        command = [sys.executable, str(PLAYED), str(run_dir), str(seconds), *acts]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(command, stderr=errors, start_new_session=True)

    def pids(self, ranks: int = 2) -> list[int]:
        return read_pids(self.run_dir, ranks)

    def watchdogs(self) -> list[int]:
        return processes_with(f"corral-{self.process.pid}-")

    def wait(self, seconds: float) -> int:
        """Exit code of the played torchrun, after the watchdog has ended too."""
        code = self.process.wait(seconds)
        until(lambda: not self.watchdogs(), 10.0)
        assert not list(SHARED_MEMORY.glob(f"corral-{self.process.pid}-*"))
        return code

    def record(self, rank: int) -> dict[str, object]:
        return json.loads((self.run_dir / "exit" / f"attempt-0-rank-{rank}.json").read_text())

    @property
    def said(self) -> str:
        return self.errors.read_text()


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., Group]]:
    groups: list[Group] = []

    def start(*acts: str, seconds: int = 1) -> Group:
        groups.append(Group(tmp_path / "run", seconds, *acts))
        return groups[-1]

    yield start
    for group in groups:
        for pid in processes_with(str(group.run_dir)):
            os.kill(pid, signal.SIGKILL)
        group.process.wait()


Play = Callable[..., Group]


def test_ranks_that_end_well_leave_nothing(play: Play) -> None:
    group = play("claim mark steps", "steps")
    assert len(group.pids()) == 2
    until(group.watchdogs)
    assert group.wait(20) == 0
    assert group.said == ""
    assert not list((group.run_dir / "logs").glob("*"))


def test_a_stopped_rank_is_named_and_all_are_ended(play: Play) -> None:
    group = play("claim mark for-ever", "for-ever")
    pids = group.pids()
    until(group.watchdogs)
    time.sleep(0.5)
    os.kill(pids[1], signal.SIGSTOP)
    began = time.monotonic()
    assert group.wait(20) == signal.SIGKILL
    assert 1.0 <= time.monotonic() - began < 10.0
    for rank in (0, 1):
        record = group.record(rank)
        assert record["code"] == 76
        assert f"rank 1 (process {pids[1]}) is stopped by a signal" in str(record["reason"])
        assert record["step"]
    assert json.loads((group.run_dir / "exit.json").read_text())["code"] == 76
    assert f"rank 1 (process {pids[1]}) is stopped by a signal" in group.said
    (stacks,) = (group.run_dir / "logs").glob("hang-attempt-0-*.txt")
    first, second = stacks.read_text().split("=== rank ")[1:]
    assert "take_steps" in first
    assert "State:\tT (stopped)" in second
    assert "no stacks: the process is stopped by a signal" in second
    (event,) = [json.loads(line) for line in (group.run_dir / "events.jsonl").read_text().splitlines()]
    assert (event["kind"], event["ranks"]) == ("hang", [1])


def test_a_stuck_reader_is_named_with_its_stack(play: Play) -> None:
    group = play("claim mark for-ever", "steps stuck")
    # The played ranks do not wait for each other, so rank 0 goes on and rank 1 is the one behind.
    assert group.wait(20) == signal.SIGKILL
    reason = str(group.record(1)["reason"])
    assert "rank 1 (process" in reason
    assert "at step 21, waiting for its rows" in reason
    assert "1 more of this node wait for it" in reason
    (stacks,) = (group.run_dir / "logs").glob("hang-attempt-0-*.txt")
    assert "in stuck_reader" in stacks.read_text().split("=== rank 1")[1]


@pytest.mark.slow
def test_with_seconds_0_nothing_is_a_hang(play: Play) -> None:
    group = play("claim mark steps evaluate", "steps stuck", seconds=0)
    pids = group.pids()
    until(group.watchdogs)
    time.sleep(4.0)
    assert alive(pids[1])


@pytest.mark.slow
def test_a_silent_evaluation_and_checkpoint_are_no_hang(play: Play) -> None:
    group = play("claim mark steps evaluate save steps", "steps evaluate save steps")
    assert group.wait(20) == 0
    assert group.said == ""


def test_a_rank_that_dies_at_the_start_takes_the_others_with_it(play: Play) -> None:
    group = play("claim start", "start")
    pids = group.pids()
    until(group.watchdogs)
    time.sleep(0.5)
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    until(lambda: "rank 1 on" in group.said, 5.0)
    assert group.wait(20) == signal.SIGKILL
    assert time.monotonic() - began < 10.0
    assert "died without a word at the start" in str(group.record(1)["reason"])
    assert "rank 1 on" in str(group.record(0)["reason"])
    assert json.loads((group.run_dir / "exit.json").read_text())["code"] == 76


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGKILL, "died without a word at the start"), (signal.SIGSTOP, "is stopped by a signal")],
)
def test_a_rank_that_never_came_is_missed(play: Play, number: signal.Signals, said: str) -> None:
    group = play("claim start", "late")
    pids = group.pids()
    until(group.watchdogs)
    time.sleep(0.7)
    os.kill(pids[1], number)
    began = time.monotonic()
    assert group.wait(20) == signal.SIGKILL
    assert time.monotonic() - began < 10.0
    expected = (
        "died without a word at the start" if number is signal.SIGKILL else "is stopped by a signal, at the start"
    )
    assert expected in str(group.record(1)["reason"])


@pytest.mark.slow
def test_a_rank_that_runs_unwatched_disturbs_nobody(play: Play) -> None:
    group = play("claim mark steps evaluate save steps", "late", seconds=1)
    pids = group.pids()
    until(group.watchdogs)
    time.sleep(1.5)
    os.kill(pids[1], signal.SIGKILL)
    group.wait(20)
    assert group.record(0)["code"] == 0
    assert group.said == ""


@pytest.mark.slow
def test_a_rank_that_says_why_it_ends_keeps_its_word(play: Play) -> None:
    """The other is ended without a record, because the reason is known; an exit.json of others is left alone."""
    group = play("start", "end-73")
    began = time.monotonic()
    assert group.wait(20) == 73
    assert time.monotonic() - began < 15.0
    assert group.record(1)["code"] == 73
    assert not (group.run_dir / "exit" / "attempt-0-rank-0.json").exists()
    assert not (group.run_dir / "exit.json").exists()
    assert group.said == ""


def test_a_killed_parent_takes_its_ranks_with_it(play: Play) -> None:
    group = play("claim mark for-ever", "for-ever")
    pids = group.pids()
    until(group.watchdogs)
    time.sleep(0.5)
    group.process.kill()
    until(lambda: not any(alive(pid) for pid in pids), 5.0)
    until(lambda: not group.watchdogs(), 5.0)
    for rank in (0, 1):
        assert f"the process {group.process.pid} that started the ranks" in str(group.record(rank)["reason"])


@pytest.mark.slow
def test_all_suspended_together_is_no_hang(play: Play) -> None:
    """As a scheduler suspends a job: the watchdog is suspended too."""
    group = play("claim mark for-ever", "for-ever")
    pids = group.pids()
    until(group.watchdogs)
    time.sleep(0.5)
    everyone = [*pids, *group.watchdogs()]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3.0)
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
    time.sleep(1.5)
    assert all(alive(pid) for pid in everyone)
    assert group.said == ""


@pytest.mark.slow
def test_ranks_that_lost_their_run_are_ended_after_a_minute(play: Play) -> None:
    """They look by themselves at every step; these, as if they waited for a rank that is gone, do not."""
    group = play("claim mark for-ever", "for-ever")
    group.pids()
    until(group.watchdogs)
    own(group.run_dir, 1)
    began = time.monotonic()
    assert group.wait(100) == signal.SIGKILL
    assert LEAVES_S <= time.monotonic() - began < LEAVES_S + 25
    assert "attempt 1 on " in group.said
    assert "had not left" in group.said
    assert not (group.run_dir / "exit.json").exists()
