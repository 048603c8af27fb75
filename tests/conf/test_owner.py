"""The owner of a run: a requeued job takes over from itself alone, and what it took from publishes nothing more."""

from __future__ import annotations

import errno
import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from conf.attempts.owner import own, owner_of, successor, take_over
from conf.durable import take_lock, wait_for_lock
from conf.errors import HeldByAnother, Requeue
from conf.exits import ExitRecord, merge_exits, next_attempt, reduce_exits, write_json, write_rank_exit
from train.process import run_dir as folder
from train.process.preempt import StopRequest
from train.process.run_dir import claim


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")


def test_a_job_takes_over_from_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: None) -> None:
    assert not take_over(tmp_path, 0)  # nobody has owned it, so its lock decides
    assert owner_of(tmp_path) is None
    own(tmp_path, 0)
    assert next_attempt(tmp_path) == 1, "an attempt that left no other mark counts too"
    assert successor(tmp_path, 0) is None
    assert take_over(tmp_path, 1)
    later = successor(tmp_path, 0)
    assert later is not None
    assert str(later).startswith("attempt 1 of job 7 on ")
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert not take_over(tmp_path, 2)
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not take_over(tmp_path, 2)
    assert owner_of(tmp_path) == later


@pytest.mark.parametrize("content", ["", "{", "[]", '{"attempt": "x"}', '{"attempt": 3}', "\x00" * 40, "[" * 100_000])
def test_a_file_that_is_no_record_owns_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "owner").write_text(content)
    assert owner_of(tmp_path) is None
    assert next_attempt(tmp_path) == 0


def test_a_new_attempt_waits_for_the_old_one_of_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: None
) -> None:
    """And asks to be queued again where it stays; the attempt of another job is refused at once."""
    slept: list[float] = []
    old = claim(tmp_path, 0)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            old.close()

    monkeypatch.setattr(folder.time, "sleep", sleep)
    take_over(tmp_path, 1)
    with pytest.raises(HeldByAnother, match=r"attempt 1 of job 7 on .*has taken this run over"):
        claim(tmp_path, 0)
    new = claim(tmp_path, 1)
    assert len(slept) == 3
    take_over(tmp_path, 2)
    monkeypatch.setattr(folder, "WAIT_S", -1.0)
    with pytest.raises(Requeue, match=r"in use by process \d+ on"):
        claim(tmp_path, 2)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(HeldByAnother, match="in use"):
        claim(tmp_path, 3)
    new.close()


def test_who_lost_a_run_leaves_at_its_next_look(tmp_path: Path, job: None) -> None:
    own(tmp_path, 0)
    stop = StopRequest(successor=lambda: successor(tmp_path, 0))
    other = StopRequest(polls=False, successor=lambda: successor(tmp_path, 0))
    assert not stop.pending()
    take_over(tmp_path, 1)
    assert not other.pending(), "one process per node looks"
    with pytest.raises(HeldByAnother, match="has taken this run over; nothing more is written"):
        stop.pending()


def test_who_lost_a_run_leaves_the_exit_record_of_the_new_one_alone(tmp_path: Path, job: None) -> None:
    own(tmp_path, 0)
    take_over(tmp_path, 1)
    write_json(tmp_path / "exit.json", {"code": 75, "attempt": 1})
    write_rank_exit(tmp_path, 0, ExitRecord(76, "lost contact", 9, "", 0))
    merge_exits(tmp_path, 0)
    assert (reduce_exits(tmp_path, 0, 2).code, json.loads((tmp_path / "exit.json").read_text())["code"]) == (73, 75)
    write_rank_exit(tmp_path, 0, ExitRecord(0, "done", 9, "", 1))
    assert reduce_exits(tmp_path, 1, 1).code == 0
    assert json.loads((tmp_path / "exit.json").read_text())["code"] == 0


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, "played")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for take in (take_lock, wait_for_lock):
        if number == errno.EIO:
            with pytest.raises(OSError, match="played"):
                take(tmp_path / "lock")
        else:
            take(tmp_path / "lock").close()
            assert "knows no locks (played)" in capsys.readouterr().err
