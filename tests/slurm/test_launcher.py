"""`python -m launch` on a real SLURM: chains, arrays, fewer nodes than asked for, how a run stands, and its end."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.conftest import HERE, Cluster

pytestmark = pytest.mark.slurm
TINY = ["experiment=demo", "cluster=slurm", "cluster.nodes=1", "cluster.gpus_per_node=1", "debug=fast"]


def launch(cluster: Cluster, *words: str, environment: dict[str, str] | None = None) -> str:
    return cluster.run(sys.executable, "-m", "launch", *words, environment=environment)


def job_in(said: str, words: str) -> str:
    return said.partition(f"{words} job ")[2].partition(";")[0].partition(",")[0]


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def played(tmp_path: Path) -> Callable[[list[object]], dict[str, str]]:
    """The environment in which training is played."""

    def make(play: list[object]) -> dict[str, str]:
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_python.py"} "$@"\n')
        python.chmod(0o755)
        return {
            "CORRAL_PYTHON": str(python),
            "REAL_PYTHON": sys.executable,
            "FAKE_RUN_DIR": str(tmp_path / "run"),
            "FAKE_RECORD": str(tmp_path / "calls"),
            "FAKE_PLAY": json.dumps(play),
        }

    return make


def test_a_chain_prepares_trains_and_evaluates(cluster: Cluster, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [*TINY, f"run_dir={run_dir}", f"data.prepared={tmp_path}/corpus", "evaluation.at_end=false"]
    said = launch(cluster, *words)
    prepare, train, evaluate = (job_in(said, kind) for kind in ("corpus:", "submitted as", "evaluates:"))
    assert cluster.wait(train, 180)["JobState"] == "COMPLETED", said
    assert cluster.wait(evaluate, 60)["JobState"] == "COMPLETED", said
    times = [cluster.job(job) for job in (prepare, train, evaluate)]
    assert all(before["EndTime"] <= after["StartTime"] for before, after in itertools.pairwise(times))
    assert list(run_dir.glob("evaluation-step-*.json"))
    status = launch(cluster, "status", f"run_dir={run_dir}")
    assert f"job {evaluate} (evaluate): COMPLETED" in status
    assert "ended with 0" in status


def test_a_chain_whose_preparation_fails_trains_nothing(cluster: Cluster, tmp_path: Path) -> None:
    words = [*TINY, f"run_dir={tmp_path}/run", f"data.prepared={tmp_path}/file/corpus"]
    (tmp_path / "file").write_text("no folder")
    said = launch(cluster, *words)
    prepare, train = job_in(said, "corpus:"), job_in(said, "submitted as")
    assert cluster.wait(prepare)["JobState"] == "FAILED"
    assert cluster.wait(train)["JobState"] == "CANCELLED"


def test_a_limit_that_gives_one_step_per_attempt_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """Four minutes, and the script's signal five minutes before their end."""
    log = tmp_path / "log"
    command = ["sbatch", "--parsable", "--time=0:04:00", f"--output={log}", "slurm/train.sh", "experiment=demo"]
    job = cluster.run(*command, f"run_dir={tmp_path}/run", environment={"CORRAL_PYTHON": sys.executable}).strip()
    assert cluster.wait(job)["ExitCode"] == "78:0", log.read_text()
    assert "the time limit is 240 s, and the run is asked to stop 300 s before it" in log.read_text()
    assert "cluster.signal_seconds=N" in log.read_text()


def test_a_sweep_is_one_array_of_runs(
    cluster: Cluster, tmp_path: Path, played: Callable[[list[object]], dict[str, str]]
) -> None:
    words = [*TINY, f"run_dir={tmp_path}/run", f"data.prepared={tmp_path}", "cluster.at_once=1", "optim.lr=1e-3,3e-3"]
    (tmp_path / "MANIFEST.json").touch()  # preparation is played
    said = launch(cluster, "-m", *words, environment=played([0]))
    job = job_in(said, "submitted as")
    folders = sorted(tmp_path.glob("run-????????"))
    assert len(folders) == 2
    for task in (0, 1):
        assert cluster.wait(f"{job}_{task}", 90)["JobState"] == "COMPLETED", said
    calls = [json.loads(line)["argv"] for line in (tmp_path / "calls").read_text().splitlines()]
    begun = [argv for argv in calls if argv[1:3] == ["launch", "begin"]]
    assert len(begun) == 2
    assert all((folder / "logs" / "launches.jsonl").is_file() for folder in folders)
    assert not list(tmp_path.rglob(".arguments*"))


def test_a_run_goes_on_with_fewer_nodes_and_grows_back(
    cluster: Cluster, tmp_path: Path, played: Callable[[list[object]], dict[str, str]]
) -> None:
    cluster.run("scontrol", "update", "NodeName=node3", "State=DRAIN", "Reason=test")
    try:
        words = ["experiment=demo", "cluster=slurm", "cluster.nodes=3", "cluster.min_nodes=2"]
        words += ["cluster.gpus_per_node=1", f"run_dir={tmp_path}/run", f"data.prepared={tmp_path}"]
        (tmp_path / "MANIFEST.json").touch()
        job = job_in(launch(cluster, *words, environment=played(["wait", 0])), "submitted as")
        run_dir = tmp_path / "run"
        until(lambda: len(list(run_dir.glob("waiting-*"))) == 2)
    finally:
        cluster.run("scontrol", "update", "NodeName=node3", "State=RESUME")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job, 90)["JobState"] == "COMPLETED"
    log = next((run_dir / "logs").glob("slurm-*.log")).read_text()
    assert "attempt 0 on node1 node2 (2 nodes x 1 processes)" in log
    assert "attempt 1 on node1 node2 node3 (3 nodes x 1 processes)" in log


def test_a_run_is_looked_at_and_asked_to_stop(
    cluster: Cluster, tmp_path: Path, played: Callable[[list[object]], dict[str, str]]
) -> None:
    run_dir = tmp_path / "run"
    words = [*TINY, f"run_dir={run_dir}", f"data.prepared={tmp_path}"]
    (tmp_path / "MANIFEST.json").touch()
    job = job_in(launch(cluster, *words, environment=played(["wait"])), "submitted as")
    until(lambda: (run_dir / "waiting-0").exists())
    assert f"job {job} (train): RUNNING" in launch(cluster, "status", f"run_dir={run_dir}")
    said = launch(cluster, "cancel", str(run_dir))
    assert "asked to save a checkpoint and leave" in said
    done = cluster.wait(job)
    assert (done["JobState"], done["ExitCode"], done["Restarts"]) == ("FAILED", "75:0", "0")
    assert "attempt 0 on node" in launch(cluster, "logs", f"run_dir={run_dir}")
    assert "nothing of" in launch(cluster, "cancel", str(run_dir))
    held = job_in(launch(cluster, *words, "cluster.sbatch=[--hold]", environment=played(["wait"])), "submitted as")
    assert "waits: JobHeldUser" in launch(cluster, "status", str(run_dir))
    assert f"job {held} (train) is cancelled" in launch(cluster, "cancel", str(run_dir))
    assert cluster.wait(held)["JobState"] == "CANCELLED"
