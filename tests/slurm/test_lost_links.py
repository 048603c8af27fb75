"""A cable that is cut while its hosts live: no connection closes, and every rank leaves with 76 all the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.distributed import free_port
from tests.end_to_end.commands import call, environment, lines, tiny_run
from tests.slurm.conftest import HERE, ROOT, Cluster
from tests.slurm.test_lost_nodes import steps, until
from train.ranks.group import GROUP_TIMEOUT

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

RUN = (
    "schedule.max_steps=150", "batch.global_size=32", "data.stop={epochs: 60}", "checkpoint.every_steps=20",
    "evaluation.at_start=false", "evaluation.at_end=false", "compute.threads=1",
)  # fmt: skip
LIMIT_S = GROUP_TIMEOUT.total_seconds() + 30
SETTINGS = {key: environment()[key] for key in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS")}


@contextmanager
def cut(cluster: Cluster, node: str, interface: str) -> Iterator[None]:
    """The other end of a node's link goes down: what the node sends is lost, and it is told nothing."""
    cluster.run("ip", "link", "set", f"{node}-{interface}", "down")
    try:
        yield
    finally:
        cluster.run("ip", "link", "set", f"{node}-{interface}", "up")


def at(cluster: Cluster, node: str, *command: str, variables: dict[str, str]) -> subprocess.Popen[str]:
    inherited = {key: value for key, value in environment().items() if key != "GLOO_SOCKET_IFNAME"}  # the tests' own
    return subprocess.Popen(
        [str(HERE / "cluster.sh"), "at", str(cluster.folder), node, *command],
        cwd=ROOT,
        env={**inherited, **variables},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.timeout(120)
def test_objects_are_not_waited_for_behind_a_cut_link(cluster: Cluster) -> None:
    """Who waits for data would wait for ever, and who has sent some for 16 minutes."""
    port, script = str(free_port()), [sys.executable, "-m", "tests.slurm.waiting_ranks", "5"]
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "10.214.0.1", "MASTER_PORT": port}
    common |= {"GLOO_SOCKET_IFNAME": "eth1"}
    ranks = [at(cluster, f"node{rank + 1}", *script, variables={**common, "RANK": str(rank)}) for rank in range(2)]
    for rank in ranks:
        assert rank.stdout is not None
        while (line := rank.stdout.readline()) != "waits\n":
            assert line, f"ended: {rank.args!r}"
    with cut(cluster, "node2", "eth1"):
        said = [rank.communicate("\n", timeout=60)[0] for rank in ranks]
    ended = [re.search(r"lost a peer after ([0-9.]+) s", text) for text in said]
    assert all(ended), said
    assert max(float(found[1]) for found in ended if found) < 12, said


@pytest.mark.timeout(400)
def test_a_job_whose_data_link_is_cut_goes_on_without_the_node(cluster: Cluster, tmp_path: Path) -> None:
    """SLURM, on another network, notices nothing: the ranks end the attempt, and the preflight finds the node."""
    run_dir, log = tmp_path / "cut", tmp_path / "job.log"
    assert call("data_prep", *tiny_run(tmp_path, "cut", *RUN))[0] == 0
    variables = {**SETTINGS, "CORRAL_PYTHON": sys.executable, "CORRAL_NPROC": "1", "GLOO_SOCKET_IFNAME": "eth1"}
    command = ["sbatch", "--parsable", "--nodes=2", f"--output={log}", str(ROOT / "slurm" / "train.sh")]
    job = cluster.run(*command, *tiny_run(tmp_path, "cut", *RUN), environment=variables).strip()
    until(lambda: steps(run_dir) > 10, 120, log)
    began = time.monotonic()
    with cut(cluster, "node2", "eth1"):
        until((run_dir / "exit" / "attempt-0-end.json").exists, LIMIT_S, log)
        took = time.monotonic() - began
        first = json.loads((run_dir / "exit" / "attempt-0-end.json").read_text())
        done = cluster.wait(job, 240)
    assert first["code"] == 76
    assert took < LIMIT_S
    assert (done["JobState"], done["NodeList"], done["ExcNodeList"]) == ("COMPLETED", "node[1,3]", "node2")
    words = log.read_text()
    assert "corral: preflight: node2: it exchanges no data with node1" in words
    assert [line["step"] for line in lines(run_dir / "ledger.jsonl")] == list(range(1, 151))
    print(f"cut link to the end of the attempt: {took:.0f} s")


@pytest.mark.timeout(400)
def test_torchrun_on_two_hosts_ends_where_their_link_is_cut(cluster: Cluster, tmp_path: Path) -> None:
    """No scheduler: each host's ranks and torchrun end by themselves, the rendezvous of the other side is gone too."""
    run_dir, port = tmp_path / "hosts", str(free_port())
    assert call("data_prep", *tiny_run(tmp_path, "hosts", *RUN))[0] == 0
    head = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    head += ["--master-addr=10.214.0.1", f"--master-port={port}"]
    hosts = []
    for rank in range(2):
        command = [*head, f"--node-rank={rank}", "-m", "train", *tiny_run(tmp_path, "hosts", *RUN)]
        hosts.append(at(cluster, f"node{rank + 1}", *command, variables=SETTINGS))
    until(lambda: steps(run_dir) > 10, 120, tmp_path / "rows.jsonl")
    began = time.monotonic()
    with cut(cluster, "node2", "eth0"):
        said = [host.communicate(timeout=LIMIT_S)[0] for host in hosts]
        took = time.monotonic() - began
    assert [host.returncode for host in hosts] == [1, 1], said  # torchrun's own; exit.json has the code
    assert json.loads((run_dir / "exit.json").read_text())["code"] == 76
    ends = [json.loads((run_dir / "exit" / f"attempt-0-rank-{rank}.json").read_text()) for rank in range(2)]
    assert [end["code"] for end in ends] == [76, 76]
    print(f"cut link to the end of both: {took:.0f} s")
    until(lambda: cluster.run("sinfo", "-h", "-o", "%T").strip() == "idle", 60, tmp_path / "rows.jsonl")
