"""A rehearsal of the GPU benchmark on a CPU: tiny models in every kind of job; the table names what is missing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import gpu_parts, gpu_speed
from benchmarks.gpu_jobs import ALL, JOBS, PARTS, QUESTIONS, TESTS
from tests.end_to_end.commands import ROOT, environment

slow = pytest.mark.slow
pytestmark = pytest.mark.timeout(950)


def bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu_speed", *arguments]
    hidden = environment() | {"CUDA_VISIBLE_DEVICES": "", "CORRAL_TEST_DATA": os.environ["CORRAL_TEST_DATA"]}
    done = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@slow
def test_every_kind_of_job_runs_and_is_not_run_twice(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    real_data("alpaca/alpaca_data.json.gz")
    folder = str(tmp_path)
    bench("prepare", folder, "--rows", "400")
    jobs = ("ceilings", "1b", "1b-hf", "8b-lora")
    told = bench("run", folder, *jobs)
    assert told.count(": done after") == len(jobs), told
    missing = told.partition("not measured: ")[2].replace("\n", " ").split(", ")
    assert {each.strip() for each in missing} == {*ALL} - {*jobs}
    lines = json.loads((tmp_path / "results.json").read_text())["lines"]
    by_name = {(line["job"], line["variant"]): line for line in lines}
    first = by_name["1b", "corral"]["losses"][0]
    # The variants go on from one another's updates: near, not equal. HF began from the same weights.
    assert all(abs(line["losses"][0] - first) < 0.5 for line in lines), lines
    assert by_name["1b", "no-sharing"]["samples_per_s"] > 0
    assert (tmp_path / "profiles" / "1b.txt").read_text().count("aten::mm") >= 1
    assert ": done after" not in bench("run", folder, *jobs)


@slow
def test_the_jobs_of_further_questions_run(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    """A part of a step, a corpus, a switch and a test of each kind; a letter stands for its jobs."""
    real_data("alpaca/alpaca_data.json.gz")
    folder = str(tmp_path)
    bench("prepare", folder, "--rows", "60")
    switches = ("1b-documents", "1b-compile-evaluated", "3b-full-offload", "1b-documents-flash3")
    told = bench("run", folder, "b", "j", "k", "l", "host-adamw", "graph", *switches, "tests-resume")
    assert "FAILED" not in told, told
    assert "1b-documents-flash3: left out, flash_attn_interface is not installed" in told
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}
    wanted = {job for letter in "bjkl" for job in QUESTIONS[letter].jobs} | {"host-adamw", "graph", "tests-resume"}
    assert {*results} == wanted | ({*switches} - {"1b-documents-flash3"})
    assert results["tests-resume"]["figures"] == {"tests passed": 0.0, "tests skipped": 1.0}
    parts = results["gather"]["figures"]
    errors = [parts[f"{each}: relative error of a prefix's gradient, %"] for each in ("fp32 sums", "index_select")]
    # One rounding to bf16 is 0.17%; index_select rounds after every one of 60 terms (0.94% in docs/correctness.md).
    assert errors == [pytest.approx(0.17, abs=0.03), pytest.approx(0.94, abs=0.3)]
    adamw = results["host-adamw"]["figures"].values()
    assert [each > 0 for each in adamw] == [True, True]
    assert results["1b-flan"]["variants"]["no-sharing"]["updates"][0]["samples"] > 0


def test_every_question_has_jobs_and_every_gpu_test_is_in_one() -> None:
    assert [*QUESTIONS] == [*"abcdefghijkl"]
    named = [job for question in QUESTIONS.values() for job in question.jobs]
    assert {*named} == {"ceilings", *JOBS, *TESTS, *PARTS} == {*ALL}
    assert {*PARTS} == {*gpu_parts.PARTS}
    for file in ("test_kernels.py", "test_runs.py"):
        tests = re.findall(r"^def (test_\w+)", (ROOT / "tests" / "gpu" / file).read_text(), re.MULTILINE)
        words = [arguments[2] if len(arguments) > 1 else "" for arguments in TESTS.values() if file in arguments[0]]
        for test in tests:
            assert sum(word in test for word in words) == 1, test


def test_a_job_that_takes_too_long_is_ended_with_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_speed, "LIMIT_S", 1.0)
    began = time.monotonic()
    told = gpu_speed.outcome(["sh", "-c", "sleep 60 & wait"], dict(os.environ))
    assert told == "FAILED, more than 1 s"
    assert time.monotonic() - began < 20
    assert gpu_speed.outcome(["sh", "-c", "exit 3"], dict(os.environ)) == "FAILED with exit code 3"
    assert gpu_speed.outcome(["true"], dict(os.environ)) == "done"


def test_an_unknown_job_is_named() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_speed", "run", "/tmp/none", "2b"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "corral: no such job: 2b; there are: tests-resume, tests-stages" in done.stderr
