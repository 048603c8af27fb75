"""Nodes that SLURM loses while they train on: their ranks leave, and nothing of theirs is seen afterwards."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.end_to_end.commands import call, environment, lines, tiny_run, train
from tests.slurm.conftest import ROOT, Cluster
from tests.train.tracking.test_wandb import in_wandb

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

LONG = (
    "schedule.max_steps=500", "batch.global_size=32", "data.stop={epochs: 200}", "checkpoint.every_steps=50",
    "evaluation.at_start=false", "evaluation.at_end=false", "tracker.wandb=disabled", "compute.threads=1",
)  # fmt: skip


def until(true: Callable[[], object], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def steps(run_dir: Path) -> int:
    ledger = run_dir / "ledger.jsonl"
    return len(ledger.read_text().splitlines()) if ledger.exists() else 0


def submitted(cluster: Cluster, folder: Path, settings: Sequence[str], *, nodes: int) -> str:
    """The job that trains the run ``lost``, one process per node."""
    assert call("data_prep", *tiny_run(folder, "lost", *settings))[0] == 0
    variables = {key: environment()[key] for key in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS")}
    variables |= {"CORRAL_PYTHON": sys.executable, "CORRAL_NPROC": "1"}
    command = ["sbatch", "--parsable", f"--nodes={nodes}", f"--output={folder}/job.log"]
    script = [str(ROOT / "slurm" / "train.sh"), *tiny_run(folder, "lost", *settings)]
    return cluster.run(*command, *script, environment=variables).strip()


@pytest.mark.timeout(500)
def test_a_run_whose_slurmd_dies_is_trained_by_one_attempt_at_a_time(cluster: Cluster, tmp_path: Path) -> None:
    """SLURM starts the job on another node, and its old rank lives on: it used to train beside the new one."""
    run_dir, log = tmp_path / "lost", tmp_path / "job.log"
    job = submitted(cluster, tmp_path, LONG, nodes=1)
    until(lambda: steps(run_dir) > 60, 120, log)
    node = cluster.job(job)["NodeList"]
    cluster.at(node, "pkill", "-KILL", "-x", "slurmd")
    try:
        until(lambda: (run_dir / "exit" / "attempt-0-rank-0.json").exists(), 120, log)
        left = json.loads((run_dir / "exit" / "attempt-0-rank-0.json").read_text())
        assert left["code"] == 73
        assert f"attempt 1 of job {job}" in left["reason"]
        done = cluster.wait(job, 240)
    finally:
        cluster.at(node, "slurmd", "-N", node)
    assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "1"), log.read_text()
    assert done["NodeList"] != node
    ending = json.loads((run_dir / "exit.json").read_text())
    assert (ending["code"], ending["attempt"]) == (0, 1)
    assert [line["step"] for line in lines(run_dir / "ledger.jsonl")] == list(range(1, 501))
    assert train(1, *tiny_run(tmp_path, "whole", *LONG))[0] == 0
    prints = [call("train.fingerprint", f"run_dir={tmp_path / name}") for name in ("lost", "whole")]
    assert prints[0] == prints[1]
    assert lines(run_dir / "ledger.jsonl") == lines(tmp_path / "whole" / "ledger.jsonl")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("lost", ["the first node", "the second node"])
def test_a_run_whose_node_loses_power_goes_on_on_others(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The node of the batch script, and one that only trains. W&B holds every step once after it."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)  # the tests' own, for ranks on one machine
    more = (*LONG, "schedule.max_steps=200", "checkpoint.every_steps=30", "tracker.wandb=offline")
    run_dir, log = tmp_path / "lost", tmp_path / "job.log"
    job = submitted(cluster, tmp_path, more, nodes=2)
    until(lambda: steps(run_dir) > 50, 180, log)
    nodes = cluster.run("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).split()
    node, began = nodes[lost == "the second node"], time.monotonic()
    power_off(cluster, node)
    try:
        until(lambda: cluster.job(job)["Restarts"] != "0", 120, log)
        until(lambda: steps(run_dir) and newest_attempt(run_dir) > 0, 180, log)
        print(f"{lost} lost: its job trains on {time.monotonic() - began:.0f} s later")
        done = cluster.wait(job, 300)
    finally:
        power_on(cluster, node)
    assert done["JobState"] == "COMPLETED", log.read_text()
    assert node not in cluster.run("scontrol", "show", "hostnames", done["NodeList"]).split()
    assert train(2, *tiny_run(tmp_path, "whole", *more, "tracker.wandb=disabled"))[0] == 0
    prints = [call("train.fingerprint", f"run_dir={tmp_path / name}") for name in ("lost", "whole")]
    assert prints[0] == prints[1]
    assert lines(run_dir / "ledger.jsonl") == lines(tmp_path / "whole" / "ledger.jsonl")
    sent = in_wandb(run_dir)
    assert {step: sent[step, "train/loss"] for step in range(1, 201)} == dict.fromkeys(range(1, 201), 1)


def power_off(cluster: Cluster, node: str) -> None:
    """No process of it says a last word, and no connection closes."""
    for link in ("eth0", "eth1"):
        cluster.run("ip", "link", "set", f"{node}-{link}", "down")
    cluster.at(node, "sh", "-c", "kill -KILL -1 || true")


def power_on(cluster: Cluster, node: str) -> None:
    for link in ("eth0", "eth1"):
        cluster.run("ip", "link", "set", f"{node}-{link}", "up")
    cluster.at(node, "slurmd", "-N", node)


def newest_attempt(run_dir: Path) -> int:
    """The newest attempt that has made a step: the one that owns the ledger."""
    found = json.loads((run_dir / "owner").read_text())["attempt"]
    resumed = [line for line in lines(run_dir / "events.jsonl") if line["kind"] == "resume"]
    return int(found) if resumed else 0
