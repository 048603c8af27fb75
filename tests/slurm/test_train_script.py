"""slurm/train.sh on a real SLURM of two nodes; training itself is played by fake_python.py, in seconds."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import HERE, ROOT, Cluster

pytestmark = pytest.mark.slurm

ODD = [
    "a=b",
    "two  words",
    "[1, 2]",
    "{x: 'y'}",
    "quo\"te's",
    "$HOME",
    "`id`",
    "*",
    "",
    "semi;colon",
    "back\\slash",
    "ü",
]


@dataclass(frozen=True)
class Submitted:
    job: str
    run_dir: Path
    log: Path
    record: Path

    def calls(self, module: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.record.read_text().splitlines()]
        return [line for line in lines if line["argv"][1] == module]

    def until_waiting(self) -> None:
        """Until both nodes play "wait"."""
        deadline = time.monotonic() + 60
        while len(list(self.run_dir.glob("waiting-*"))) < 2:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def exit_json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_dir / "exit.json").read_text())
        return found


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Callable[..., Submitted]:
    """submit(overrides, play=[...]): slurm/train.sh on both nodes."""

    def send(
        overrides: list[str],
        play: list[object] | None = None,
        *,
        options: Sequence[str] = (),
        variables: dict[str, str] | None = None,
    ) -> Submitted:
        run_dir, log, record = tmp_path / "run dir", tmp_path / "job.log", tmp_path / "calls"
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_python.py"} "$@"\n')
        python.chmod(0o755)
        environment = {
            "CORRAL_PYTHON": str(python),
            "REAL_PYTHON": sys.executable,
            "FAKE_RUN_DIR": str(run_dir),
            "FAKE_RECORD": str(record),
        }
        environment |= variables or {}
        if play is not None:
            environment["FAKE_PLAY"] = json.dumps(play)
            overrides = [*overrides, f"run_dir='{run_dir}'"]
        script = [str(ROOT / "slurm" / "train.sh"), *overrides]
        command = ["sbatch", "--parsable", "--nodes=2", f"--output={log}", *options]
        job = cluster.run(*command, *script, environment=environment).strip()
        return Submitted(job, run_dir, log, record)

    return send


def test_arguments_arrive_byte_for_byte_on_every_node(cluster: Cluster, submit: Callable[..., Submitted]) -> None:
    sent = submit(ODD)
    assert cluster.wait(sent.job)["ExitCode"] == "0:0", sent.log.read_text()
    nodes = sent.calls("launch.node")
    assert sorted(call["host"] for call in nodes) == ["node1", "node2"]
    assert all(call["argv"][2:] == ODD for call in nodes)
    assert [call["argv"][2:] for call in sent.calls("data_prep")] == [ODD], "prepared once, on the batch node"
    begin, preflight, finish = sent.calls("launch")
    assert begin["argv"][3:] == ODD
    assert preflight["argv"][2:] == ["preflight", "nodes=node1,node2", "attempt=0", *ODD]
    assert finish["argv"][3:] == ["attempt=0", "restarts=0", "world=2", *ODD]


def test_no_process_has_a_secret_among_its_arguments(cluster: Cluster, submit: Callable[..., Submitted]) -> None:
    """Every user of a node reads them. The attempt's file is there for its time alone."""
    sent = submit(["experiment=demo", "checkpoint.copy_to='s3://me:typed-secret@host/b c'"], play=[75, 0])
    assert cluster.wait(sent.job, 90)["JobState"] == "COMPLETED", sent.log.read_text()
    assert "typed-secret" not in sent.record.read_text()
    assert "typed-secret" not in sent.log.read_text()
    words = [call["argv"][2:] for module in ("launch.node", "data_prep") for call in sent.calls(module)]
    assert len(words) == 6
    assert all(len(each) == 1 and each[0].startswith(f"@{sent.run_dir}/logs/.arguments-of-attempt-") for each in words)
    assert not list(sent.run_dir.rglob(".arguments*"))


def test_a_job_that_asks_for_it_is_requeued_and_goes_on(cluster: Cluster, submit: Callable[..., Submitted]) -> None:
    sent = submit(["experiment=demo"], play=[75, 76, 0])
    done = cluster.wait(sent.job, 90)
    assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "2"), sent.log.read_text()
    assert sent.exit_json()["code"] == 0
    assert sent.exit_json()["attempt"] == 2
    for name in ("node1", "node2"):
        assert (sent.run_dir / "logs" / f"node-{name}.log").read_text().count(f"on {name}") == 3, "appended"


@pytest.mark.parametrize(("play", "code"), [([78], 78), ([71], 71)])
def test_what_needs_a_person_ends_the_job_with_its_code(
    cluster: Cluster, submit: Callable[..., Submitted], play: list[object], code: int
) -> None:
    sent = submit(["experiment=demo"], play=play)
    done = cluster.wait(sent.job)
    assert (done["JobState"], done["ExitCode"]) == ("FAILED", f"{code}:0"), sent.log.read_text()
    assert done["Restarts"] == "0"


def test_a_wrong_config_ends_the_job_before_anything_else(cluster: Cluster, submit: Callable[..., Submitted]) -> None:
    sent = submit(["experiment=demo", "optim.lrr=1"], play=[0])
    assert cluster.wait(sent.job)["ExitCode"] == "78:0"
    assert "optim.lrr" in sent.log.read_text()
    assert not sent.calls("launch.node")


def test_a_crash_loop_ends_with_70(cluster: Cluster, submit: Callable[..., Submitted]) -> None:
    sent = submit(["experiment=demo", "cluster.max_restarts=1"], play=[None])
    done = cluster.wait(sent.job, 90)
    assert (done["ExitCode"], done["Restarts"]) == ("70:0", "1"), sent.log.read_text()
    assert "1 restarts gained fewer than 5 steps, up to step 0" in sent.exit_json()["reason"]


def test_the_signal_before_the_time_limit_checkpoints_and_requeues(
    cluster: Cluster, submit: Callable[..., Submitted]
) -> None:
    sent = submit(["experiment=demo"], play=["wait", 0])
    sent.until_waiting()
    cluster.run("scancel", "--batch", "--signal=USR1", sent.job)
    done = cluster.wait(sent.job, 90)
    assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "1"), sent.log.read_text()
    assert not list(sent.run_dir.rglob("stop*"))


def test_the_signal_during_preparation_ends_it_and_requeues(cluster: Cluster, submit: Callable[..., Submitted]) -> None:
    """It used to run into the time limit, and the job was lost."""
    sent = submit(["experiment=demo"], play=[0], variables={"FAKE_PREPARES": "1"})
    deadline = time.monotonic() + 60
    while not (sent.run_dir / "prepared").exists():
        assert time.monotonic() < deadline, sent.log.read_text()
        time.sleep(0.1)
    cluster.run("scancel", "--batch", "--signal=USR1", sent.job)
    done = cluster.wait(sent.job, 60)
    assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "1"), sent.log.read_text()
    assert len(sent.calls("data_prep")) == 2


def test_a_cancelled_job_is_not_requeued(cluster: Cluster, submit: Callable[..., Submitted]) -> None:
    sent = submit(["experiment=demo"], play=["wait", 0])
    sent.until_waiting()
    cluster.run("scancel", sent.job)
    done = cluster.wait(sent.job, 60)
    assert (done["JobState"], done["Restarts"]) == ("CANCELLED", "0"), sent.log.read_text()


def test_slurms_own_requeue_starts_it_once_more_and_not_twice(
    cluster: Cluster, submit: Callable[..., Submitted]
) -> None:
    sent = submit(["experiment=demo"], play=["wait", 0])
    sent.until_waiting()
    cluster.run("scontrol", "requeue", sent.job)
    done = cluster.wait(sent.job, 90)
    assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "1"), sent.log.read_text()


def test_a_bad_node_is_left_out_beside_those_of_the_user(cluster: Cluster, submit: Callable[..., Submitted]) -> None:
    sent = submit(["experiment=demo"], play=["bad", 0], options=["--nodes=1", "--exclude=node3"])
    done = cluster.wait(sent.job, 90)
    assert (done["JobState"], done["Restarts"], done["NodeList"]) == ("COMPLETED", "1", "node2"), sent.log.read_text()
    assert done["ExcNodeList"] == "node1,node3"
    assert "without node1,node3" in sent.log.read_text()


def test_too_few_good_nodes_end_the_job_with_a_sentence(cluster: Cluster, submit: Callable[..., Submitted]) -> None:
    sent = submit(["experiment=demo"], play=["bad", 0], options=["--exclude=node3"])
    done = cluster.wait(sent.job, 90)
    assert (done["JobState"], done["ExitCode"], done["Restarts"]) == ("FAILED", "69:0", "0"), sent.log.read_text()
    assert "2 nodes are needed and partition all has 1 without node1 node3" in sent.log.read_text()
