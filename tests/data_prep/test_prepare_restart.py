"""A preparation that was killed: its processes leave, and one that is started again does the rest only."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from conf.errors import BadData, CannotCreate, MissingInput
from conf.schema import RunConfig
from data_prep.blocks import process as block
from data_prep.blocks import workers as pool
from data_prep.corpus.shards import open_corpus
from data_prep.prepare import prepare
from tests.data_prep.made import alpaca_rows, config, write_json
from tests.data_prep.test_prepare import ROOT, block_times, digests, dirty_rows, leaf, prepared


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "BLOCK_ROWS", 16)


def _killed_after_blocks(words: list[str], corpus: Path, blocks: int) -> None:
    """Start a preparation in a process of its own and kill it once so many blocks are finished."""
    child = subprocess.Popen([sys.executable, *words], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while len(list((corpus / ".work/a").glob("0*.json"))) < blocks and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()


@pytest.mark.slow
@pytest.mark.faults
def test_the_processes_of_a_killed_preparation_leave(tmp_path: Path) -> None:
    write_json(tmp_path / "rows.json", alpaca_rows(3000))
    command = f"""
from pathlib import Path
from data_prep.prepare import prepare
from tests.data_prep.made import config
from tests.data_prep.test_prepare import leaf
if __name__ == "__main__":
    folder = Path({str(tmp_path)!r})
    prepare(config({{"a": leaf(folder / "rows.json")}}, folder / "corpus", num_proc=2), argv=[])
"""
    (tmp_path / "child.py").write_text(command)
    child = subprocess.Popen(
        [sys.executable, str(tmp_path / "child.py")], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    deadline, started = time.monotonic() + 60, list[psutil.Process]()
    while len(started) < 3:  # two workers and multiprocessing's own helper
        assert child.poll() is None
        assert time.monotonic() < deadline
        started = psutil.Process(child.pid).children(recursive=True)
        time.sleep(0.02)
    time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    _, left = psutil.wait_procs(started, timeout=60)
    for each in left:
        each.kill()
    assert not left


SLOW_CHILD = """
import sys, time
from data_prep.blocks import process as block, workers as pool
from data_prep.prepare import prepare
from tests.data_prep.test_prepare_restart import restart_config
from pathlib import Path
pool.BLOCK_ROWS = 16
real = block.process
def slow(job, part):
    time.sleep(0.05)
    return real(job, part)
pool.process = slow
prepare(restart_config(Path(sys.argv[1]), "corpus"), argv=[])
"""


def restart_config(folder: Path, name: str) -> RunConfig:
    return config({"a": leaf(folder / "rows.json", validation_fraction=0.2)}, folder / name)


@pytest.mark.slow
@pytest.mark.faults
def test_killed_and_started_again_does_only_the_rest(tmp_path: Path) -> None:
    write_json(tmp_path / "rows.json", [*dirty_rows(), *alpaca_rows(1200)[60:]])
    _killed_after_blocks(["-c", SLOW_CHILD, str(tmp_path)], tmp_path / "corpus", blocks=4)
    before = block_times(tmp_path / "corpus")
    assert 4 <= len(before) < 75
    with pytest.raises(MissingInput, match="unfinished"):
        open_corpus(tmp_path / "corpus")
    done: list[int] = []
    real = block.process
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "process", lambda job, part: done.append(part.index) or real(job, part))
        prepare(restart_config(tmp_path, "corpus"), argv=[])
    assert min(done) == len(before)
    prepare(restart_config(tmp_path, "whole"), argv=[])
    assert digests(tmp_path / "corpus") == digests(tmp_path / "whole")


def test_unfinished_work_of_another_config_is_thrown_away(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", dirty_rows())
    with pytest.raises(BadData):
        prepare(config({"a": leaf(path)}, tmp_path / "corpus", bad_row_budget=0.0), argv=[])
    corpus = prepared(config({"a": leaf(path, template="plain")}, tmp_path / "corpus"))
    fresh = prepared(config({"a": leaf(path, template="plain")}, tmp_path / "fresh"))
    assert digests(corpus.path) == digests(fresh.path)
    assert not (corpus.path / ".work").exists()


def test_two_preparations_of_one_folder(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.json", alpaca_rows(5))
    (tmp_path / "corpus").mkdir()
    with (tmp_path / "corpus/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CannotCreate, match="another process is preparing"):
            prepare(config({"a": leaf(path)}, tmp_path / "corpus"), argv=[])
