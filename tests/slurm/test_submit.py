"""`python -m launch cluster=slurm` on a real SLURM whose nodes have four made-up GPUs: what its job is given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import Cluster

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize(("gpus", "cpus", "shared"), [(4, 16, "NO"), (2, 8, "OK")])
def test_gpus_come_with_their_cpus(gpu_cluster: Cluster, tmp_path: Path, gpus: int, cpus: int, shared: str) -> None:
    """All four of a node: both nodes with their eight CPUs, for this job alone. Two: four CPUs on each."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 78\n")  # the job is over at once, as after a wrong config
    python.chmod(0o755)
    (tmp_path / "MANIFEST.json").touch()  # a finished corpus: no job prepares
    overrides = ["experiment=demo", "cluster=slurm", f"cluster.gpus_per_node={gpus}", f"run_dir='{tmp_path / 'run'}'"]
    overrides.append(f"data.prepared='{tmp_path}'")
    said = gpu_cluster.run(sys.executable, "-m", "launch", *overrides, environment={"CORRAL_PYTHON": str(python)})
    job = gpu_cluster.wait(
        said.partition("submitted as job ")[2].partition(";")[0]
    )  # before it starts, SLURM only guesses
    assert (job["NumCPUs"], job["OverSubscribe"]) == (str(cpus), shared)
    assert job["TresPerNode"] == f"gres:gpu:{gpus}"
