"""A request to stop: the first only sets a flag, the same one passed on twice too, and a later one does not wait."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.errors import Requeue, StorageError
from train.process import preempt
from train.process.preempt import StopRequest


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_one_request_that_arrives_twice_waits_for_the_step() -> None:
    stop = StopRequest()
    assert not stop.pending()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.pending()
    assert stop.reason == "SIGTERM"


def test_one_process_of_a_node_looks_for_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others hear of it from the ranks that do, and then say the same reason."""
    path, looked = tmp_path / "stop", list[Path]()
    exists = Path.exists
    monkeypatch.setenv("CORRAL_STOP_FILE", str(path))
    monkeypatch.setattr(Path, "exists", lambda self: looked.append(self) or exists(self))
    first, other = StopRequest(), StopRequest(polls=False)
    assert not first.pending()
    assert not other.pending()
    assert looked == [path]
    assert other.reason == "another rank was asked to stop"
    path.touch()
    assert first.pending()
    assert not other.pending()
    assert (first.reason, other.reason) == (f"stop file {path}",) * 2


def test_a_second_request_leaves_at_once_with_what_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    os.kill(os.getpid(), signal.SIGUSR1)
    monkeypatch.setattr(preempt, "AGAIN_AFTER_S", 0.0)
    with pytest.raises(Requeue, match="stopped before its first step because of a second SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
    stop.outcome = lambda reason: StorageError(f"nothing is saved: {reason}")
    with pytest.raises(StorageError, match="nothing is saved: a second SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
