"""A three-node SLURM for the tests of this folder, or the reason why there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


@dataclass(frozen=True)
class Cluster:
    folder: Path

    def ask(self, *command: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """A client command, from the repository's root."""
        return subprocess.run(
            [str(HERE / "cluster.sh"), "run", str(self.folder), *command],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def run(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """The output of a client command that succeeds."""
        done = self.ask(*command, environment=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def at(self, node: str, *command: str) -> str:
        """A command's output on a node."""
        done = subprocess.run(
            [str(HERE / "cluster.sh"), "at", str(self.folder), node, *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def job(self, job: str) -> dict[str, str]:
        words = self.run("scontrol", "-o", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, seconds: float = 60.0) -> dict[str, str]:
        """The job's record once it is over for good."""
        deadline = time.monotonic() + seconds
        while (found := self.job(job))["JobState"] not in OVER:
            assert time.monotonic() < deadline, f"job {job} is still {found['JobState']}, {found.get('Reason')}"
            time.sleep(0.2)
        return found


def missing() -> str:
    """Why no cluster can be brought up here; empty if one can."""
    search = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    absent = [
        name for name in ("slurmctld", "slurmd", "munged", "ip", "unshare") if not shutil.which(name, path=search)
    ]
    if absent:
        return f"{', '.join(absent)} not installed (tests/slurm/install.sh installs SLURM)"
    if os.geteuid() != 0:
        return "namespaces of its own need root"
    probe = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else "this machine does not allow namespaces"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    yield from brought_up()


@pytest.fixture(scope="session")
def gpu_cluster() -> Iterator[Cluster]:
    """One whose nodes have four made-up GPUs."""
    yield from brought_up(CLUSTER_GPUS="4")


def brought_up(**settings: str) -> Iterator[Cluster]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="corral-slurm-"))  # not pytest's: munged wants a path that all may enter
    command = [str(HERE / "cluster.sh"), "start", str(folder)]
    subprocess.run(command, check=True, timeout=60, env={**os.environ, **settings})
    try:
        yield Cluster(folder)
    finally:
        subprocess.run([str(HERE / "cluster.sh"), "stop", str(folder)], check=True, timeout=30)
        shutil.rmtree(folder, ignore_errors=True)
