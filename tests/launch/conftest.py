"""Jobs of played ranks (see fake_run.py), and processes that are looked at from outside."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from conf.compose import compose
from conf.schema import RunConfig
from launch.torchrun import Job, child_environment

FAKE_RUN = Path(__file__).with_name("fake_run.py")


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """job(*acts, max_restarts=3): two played ranks in a fresh run_dir."""

    def make(*acts: dict[str, object], max_restarts: int = 3) -> Job:
        run_dir = tmp_path / "run"
        command = [sys.executable, str(FAKE_RUN), json.dumps(acts), str(run_dir)]
        return Job(run_dir, 2, command, max_restarts, child_environment(2))

    return make


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for ``condition``, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def read_pids(run_dir: Path, ranks: int = 2) -> list[int]:
    """Ids the played ranks noted, once all have."""
    files = [run_dir / f"pid-{rank}" for rank in range(ranks)]
    until(lambda: all(file.is_file() and file.read_text() for file in files), 60.0)
    return [int(file.read_text()) for file in files]


def processes_with(marker: str) -> list[int]:
    """Ids of living processes that have ``marker`` on their command line, this one left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and alive(int(entry.name)):
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture
def cfg(tmp_path: Path) -> RunConfig:
    """A run of the demo on SLURM, whose corpus is prepared."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "MANIFEST.json").touch()
    found = compose(["experiment=demo", "cluster=slurm", "cluster.partition=gpu", "cluster.account=lab"])
    data = replace(found.data, prepared=str(corpus))
    return replace(found, run_dir=str(tmp_path / "run dir"), data=data)
