"""A rehearsal of the GPU benchmark on a CPU: tiny models in every kind of job; the table names what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.commands import ROOT, environment

pytestmark = pytest.mark.slow


def bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu_speed", *arguments]
    hidden = environment() | {"CUDA_VISIBLE_DEVICES": "", "CORRAL_TEST_DATA": os.environ["CORRAL_TEST_DATA"]}
    done = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_kind_of_job_runs_and_is_not_run_twice(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    real_data("alpaca/alpaca_data.json.gz")
    folder = str(tmp_path)
    bench("prepare", folder, "--rows", "400")
    jobs = ("ceilings", "1b", "1b-hf", "8b-lora")
    told = bench("run", folder, *jobs)
    assert told.count(": done after") == len(jobs), told
    assert "not measured: 1b-compile, 1b-compile-micro8, 1b-liger, 1b-trl" in told
    lines = json.loads((tmp_path / "results.json").read_text())["lines"]
    by_name = {(line["job"], line["variant"]): line for line in lines}
    first = by_name["1b", "corral"]["losses"][0]
    # The variants go on from one another's updates: near, not equal. HF began from the same weights.
    assert all(abs(line["losses"][0] - first) < 0.5 for line in lines), lines
    assert by_name["1b", "no-sharing"]["samples_per_s"] > 0
    assert (tmp_path / "profiles" / "1b.txt").read_text().count("aten::mm") >= 1
    assert ": done after" not in bench("run", folder, *jobs)


def test_an_unknown_job_is_named() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_speed", "run", "/tmp/none", "2b"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "corral: no such job: 2b; there are: ceilings, 1b-compile" in done.stderr
