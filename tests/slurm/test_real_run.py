"""slurm/train.sh on two nodes with nothing played: real training leaves what torchrun leaves on one machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.end_to_end.commands import call, environment, lines, tiny_run, train
from tests.slurm.conftest import ROOT, Cluster

pytestmark = pytest.mark.slurm

OF_THE_LAUNCHER = ("logs", "provenance.json", ".launch.lock")
"""What a supervisor keeps beside the run; torchrun alone has none."""


def left_behind(run_dir: Path) -> set[str]:
    """Paths of a run directory, without what only a launcher writes and what has ranks or times in its name."""
    paths = (path.relative_to(run_dir) for path in run_dir.rglob("*") if path.is_file())
    return {str(path) for path in paths if path.parts[0] not in (*OF_THE_LAUNCHER, "exit", "wandb")}


@pytest.mark.timeout(400)
def test_two_nodes_leave_what_torchrun_leaves(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output = call("data_prep", *tiny_run(tmp_path, "cluster"))
    assert code == 0, output
    log = tmp_path / "job.log"
    settings = {
        **{key: environment()[key] for key in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS")},
        "CORRAL_PYTHON": sys.executable,
        "CORRAL_NPROC": "1",
    }
    script = [str(ROOT / "slurm" / "train.sh"), *tiny_run(tmp_path, "cluster")]
    with monkeypatch.context() as patch:
        patch.delenv("GLOO_SOCKET_IFNAME")  # the tests' own, for ranks on one machine
        job = cluster.run("sbatch", "--parsable", "--nodes=2", f"--output={log}", *script, environment=settings).strip()
    done = cluster.wait(job, 240)
    assert (done["JobState"], done["ExitCode"]) == ("COMPLETED", "0:0"), log.read_text()

    code, output = train(2, *tiny_run(tmp_path, "torchrun"))
    assert code == 0, output
    cluster_run, torchrun_run = tmp_path / "cluster", tmp_path / "torchrun"
    assert left_behind(cluster_run) == left_behind(torchrun_run)
    assert json.loads((cluster_run / "exit.json").read_text())["code"] == 0
    assert lines(cluster_run / "ledger.jsonl") == lines(torchrun_run / "ledger.jsonl")
    curves = [
        [line["train/loss"] for line in lines(run / "metrics.jsonl") if "train/loss" in line]
        for run in (cluster_run, torchrun_run)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)
