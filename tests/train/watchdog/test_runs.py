"""Real runs on two gloo ranks under plain torchrun, attacked from outside: noticed, named, ended, nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.end_to_end.commands import call, finish, lines, start, tiny_run
from tests.launch.conftest import alive, processes_with, until
from train.watchdog.board import SHARED_MEMORY

pytestmark = pytest.mark.faults

LONG = ("evaluation.at_end=false", "schedule.max_steps=100000", "data.stop.epochs=100000", "watchdog.seconds=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("watchdog")
    code, output = call("data_prep", *tiny_run(root, "x"))
    assert code == 0, output
    return root


def torchrun(arguments: list[str], module: str = "train", **plan: str) -> subprocess.Popen[str]:
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", module]
    return start(["env", *(f"{key}={value}" for key, value in plan.items()), *head, *arguments])


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Rank -> process id, of those that live."""
    found = {}
    for child in psutil.Process(process.pid).children():
        try:
            if "RANK" in (variables := child.environ()):
                found[int(variables["RANK"])] = child.pid
        except psutil.Error:
            continue
    return found


def watchdogs(process: subprocess.Popen[str]) -> list[int]:
    return processes_with(f"corral-{process.pid}-")


def in_training(run: Path, process: subprocess.Popen[str], step: int = 5) -> dict[int, int]:
    """The ranks, once ``step`` is in the ledger."""
    ledger = run / "ledger.jsonl"
    deadline = time.monotonic() + 120
    while not ledger.exists() or len(ledger.read_text().splitlines()) < step:
        assert process.poll() is None, finish(process, 10)[1]
        assert time.monotonic() < deadline, "no step within 120 s"
        time.sleep(0.05)
    return ranks_of(process)


def ended(run: Path, process: subprocess.Popen[str], seconds: float) -> tuple[float, str]:
    """Seconds until torchrun and its watchdog were gone, at most ``seconds``, and the output."""
    began = time.monotonic()
    _, output = finish(process, seconds)
    took = time.monotonic() - began
    until(lambda: not watchdogs(process), 5.0)
    assert not list(SHARED_MEMORY.glob(f"corral-{process.pid}-*"))
    assert not processes_with(f"run_dir={run}")
    return took, output


def hang_of(run: Path) -> tuple[str, str]:
    """The reason in exit.json, and the file of stacks."""
    record = json.loads((run / "exit.json").read_text())
    assert record["code"] == 76, record
    assert record["step"] >= 1
    (stacks,) = (run / "logs").glob("hang-attempt-0-*.txt")
    assert str(stacks) in record["reason"]
    (event,) = [line for line in lines(run / "events.jsonl") if line["kind"] == "hang"]
    assert event["text"] == record["reason"]
    return record["reason"], stacks.read_text()


@pytest.mark.slow
def test_a_stopped_rank(folder: Path) -> None:
    run = folder / "stopped"
    process = torchrun(tiny_run(folder, "stopped", *LONG))
    pids = in_training(run, process)
    os.kill(pids[1], signal.SIGSTOP)
    took, output = ended(run, process, 30)
    assert 4.0 <= took < 12.0
    reason, stacks = hang_of(run)
    assert f"rank 1 (process {pids[1]}) is stopped by a signal" in reason
    assert reason in output
    first, second = stacks.split("=== rank ")[1:]
    assert "training_steps" in first
    assert "State:\tT (stopped)" in second


@pytest.mark.slow
def test_a_stuck_reader(folder: Path) -> None:
    run = folder / "stuck"
    plan = {"PLANT": "reader", "PLANT_RANK": "1", "PLANT_SECONDS": "600"}
    process = torchrun(tiny_run(folder, "stuck", *LONG), "tests.train.watchdog.planted", **plan)
    in_training(run, process, 2)
    took, _ = ended(run, process, 30)
    assert took < 14.0
    reason, stacks = hang_of(run)
    assert "rank 1 (process" in reason
    assert "waiting for its rows" in reason
    assert "1 more of this node wait for it" in reason
    first, second = stacks.split("=== rank ")[1:]
    assert "in planted_delay" in second
    assert "in planted_delay" not in first


@pytest.mark.slow
def test_death_in_the_imports(folder: Path) -> None:
    run = folder / "imports"
    process = torchrun(tiny_run(folder, "imports", *LONG))
    until(lambda: watchdogs(process), 20.0)
    time.sleep(1.5)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    took, output = ended(run, process, 60)
    assert took < 10.0
    assert "died without a word at the start" in output


@pytest.mark.slow
def test_death_before_the_group_exists(folder: Path) -> None:
    """Rank 0 waits for rank 1 in the rendezvous, from which SIGTERM does not wake it."""
    run = folder / "alone"
    plan = {"PLANT": "corpus", "PLANT_RANK": "1", "PLANT_SECONDS": "600"}
    process = torchrun(tiny_run(folder, "alone", *LONG), "tests.train.watchdog.planted", **plan)
    until((run / "lock").exists, 60.0)
    time.sleep(3.0)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    took, output = ended(run, process, 60)
    assert 4.0 < took < 10.0
    assert "died without a word at the start" in output
    assert json.loads((run / "exit.json").read_text())["code"] == 76


@pytest.mark.slow
def test_death_in_a_step(folder: Path) -> None:
    run = folder / "death"
    process = torchrun(tiny_run(folder, "death", *LONG))
    pids = in_training(run, process)
    os.kill(pids[1], signal.SIGKILL)
    took, output = ended(run, process, 60)
    assert took < 10.0
    assert f"(process {pids[1]}) died without a word at step" in output
    record = json.loads((run / "exit" / "attempt-0-rank-1.json").read_text())
    assert record["code"] == 76
    assert record["step"] >= 5


@pytest.mark.slow
def test_torchrun_killed(folder: Path) -> None:
    run = folder / "orphans"
    process = torchrun(tiny_run(folder, "orphans", *LONG))
    pids = in_training(run, process)
    agent = psutil.Process(process.pid)
    dogs = watchdogs(process)
    agent.kill()
    until(lambda: not any(alive(pid) for pid in [*pids.values(), *dogs]), 10.0)
    record = json.loads((run / "exit.json").read_text())
    assert record["code"] == 76
    assert "(torchrun) was killed" in record["reason"]
    finish(process, 10)


@pytest.mark.slow
def test_slow_saves_and_evaluations_are_no_hang_and_nothing_is_left(folder: Path) -> None:
    run = folder / "slow"
    few = ("schedule.max_steps=6", "checkpoint.every_steps=3", "evaluation.every_steps=2", "watchdog.seconds=1")
    plan = {"PLANT": "save evaluation", "PLANT_RANK": "1", "PLANT_SECONDS": "3"}
    process = torchrun(tiny_run(folder, "slow", *few), "tests.train.watchdog.planted", **plan)
    _, output = ended(run, process, 120)
    assert process.returncode == 0, output
    assert json.loads((run / "exit.json").read_text())["code"] == 0
    assert not list((run / "logs").glob("*"))


def launched(folder: Path, name: str) -> tuple[subprocess.Popen[str], int]:
    """A supervised run with a checkpoint, and the process of its second rank."""
    few = ("schedule.max_steps=200", "checkpoint.every_steps=10", "evaluation.at_end=false", "watchdog.seconds=4")
    arguments = tiny_run(folder, name, *few, "cluster.gpus_per_node=2", "data.stop.epochs=100000")
    launcher = start([sys.executable, "-m", "launch", *arguments])
    until((folder / name / "checkpoints" / "step-00000010" / "MANIFEST.json").exists, 120.0)
    second = next(
        pid
        for pid in processes_with(f"run_dir={folder / name}")
        if b"RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes().replace(b"LOCAL_RANK=", b"")
    )
    return launcher, second


@pytest.mark.slow
def test_from_a_death_to_the_first_new_step(folder: Path) -> None:
    """docs/reliability.md has the figures that this prints."""
    run = folder / "restart"
    launcher, second = launched(folder, "restart")
    os.kill(second, signal.SIGKILL)
    died = time.time()

    def resumed() -> dict[str, Any] | None:
        return next((line for line in lines(run / "events.jsonl") if line["kind"] == "resume"), None)

    until(resumed, 60.0)
    again = resumed()
    assert again
    until(lambda: lines(run / "ledger.jsonl")[-1]["step"] > again["step"], 60.0)
    took = time.time() - died
    noticed, gone = ((run / "exit" / f"attempt-0-{name}.json").stat().st_mtime for name in ("rank-1", "end"))
    print(
        f"\nnoticed after {noticed - died:.1f} s, all out after {gone - died:.1f} s, restored after "
        f"{again['time'] - died:.1f} s, first new step after {took:.1f} s"
    )
    code, output = finish(launcher, 150)
    assert code == 0, output
    assert f"(process {second}) died without a word" in output
    assert noticed - died <= 5.0
    assert gone - died <= 10.0
    assert took <= 30.0


@pytest.mark.slow
def test_the_launcher_starts_a_hung_run_again(folder: Path) -> None:
    run = folder / "again"
    launcher, stopped = launched(folder, "again")
    os.kill(stopped, signal.SIGSTOP)
    code, output = finish(launcher, 150)
    assert code == 0, output
    assert "attempt 0 ended with 76" in output
    assert f"(process {stopped}) is stopped by a signal" in output
    assert lines(run / "ledger.jsonl")[-1]["step"] == 200
