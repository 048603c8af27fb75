"""A process whose parent died before the kernel was told of it ends by itself: nobody would end it otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from launch.guard import die_with_parent
from launch.torchrun import child_environment

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
KILLED = 128 + signal.SIGKILL


def test_the_parent_is_there() -> None:
    child = subprocess.Popen(SLEEP, preexec_fn=partial(die_with_parent, os.getpid()))
    time.sleep(0.3)
    assert child.poll() is None
    child.kill()
    child.wait()


def test_the_parent_died_before() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    child = subprocess.Popen(SLEEP, preexec_fn=partial(die_with_parent, gone.pid))
    assert child.wait(10) == KILLED


def test_a_rank_whose_torchrun_is_gone_ends(tmp_path: Path) -> None:
    """It has another parent then: here this test, on a cluster whoever takes in orphans."""
    environment = {**os.environ, **child_environment(1), "CORRAL_LOG_DIR": ""}
    ended = subprocess.run(
        [sys.executable, "-m", "launch.worker", "--help"], env=environment, capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == KILLED
    assert not ended.stdout
