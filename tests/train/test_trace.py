"""The closed form of activation memory against fake tensors of the whole step, and that trace against torch's own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks.plan_accuracy import CASES, Case, closed, line, mem_tracker, targets_of, traced
from benchmarks.plan_accuracy import config as run_of
from launch.torchrun import ROOT, child_environment
from train.parameters import shape_of
from train.plan.activations import step_peaks as moments_of
from train.plan.memory import work_of
from train.trace import FEW, PHASES, step_peaks, trace

LOW = 0.02
"""The formulas may say at most so much less than is needed."""


@pytest.mark.slow
def test_the_closed_form_is_within_bounds_of_the_trace() -> None:
    assert len(CASES) >= 16
    found = [(case, closed(case), traced(case)) for case in CASES]
    errors = [predicted / measured - 1 for _, predicted, measured in found]
    said = "\n".join(line(*each) for each in found)
    assert statistics.median(abs(error) for error in errors) <= 0.015, said
    assert max(abs(error) for error in errors) <= 0.03, said
    assert min(errors) >= -LOW, said


FOLLOWED = [*CASES[:2], next(case for case in CASES if case.method == "lora" and case.model["model_type"] == "gpt2")]


@pytest.mark.parametrize(
    "case", FOLLOWED, ids=lambda case: f"{case.model['model_type']}-{case.method}-{case.recompute}"
)
def test_the_trace_agrees_with_torchs_mem_tracker(case: Case) -> None:
    peaks = step_peaks(run_of(case), case.model, FEW, targets_of(case))
    assert mem_tracker(case) == pytest.approx(max(peaks.values()), rel=0.01)


def test_a_trace_names_every_phase_and_grows_with_the_layers() -> None:
    case = CASES[0]
    small = trace(run_of(case), {**case.model, "num_hidden_layers": 4}, 0.1)
    large = trace(run_of(case), {**case.model, "num_hidden_layers": 40}, 0.1)
    assert set(small.phases) == set(PHASES)
    assert large.peak > 5 * small.peak


@pytest.mark.slow
def test_the_command_plans_and_traces_the_same() -> None:
    """The demo's head counts every token without a corpus, in the trace as in the formulas."""
    command = [sys.executable, "-m", "launch", "plan", "experiment=demo", "data.prepared=none", "--json", "--trace"]
    environment = {**os.environ, **child_environment(1)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=True)
    found = json.loads(done.stdout)
    own = found["stages"]["2"]
    assert found["trace_gib"]["peak"] == pytest.approx(own["activations"] + own["logits"] + own["passing"], abs=0.002)


@pytest.mark.parametrize(
    ("name", "method", "slices"),
    [
        ("llama 8B", "full", 2),
        ("llama 8B", "lora", 16),
        ("gpt2", "full", 4),
        ("gpt2", "lora", 2),
        ("neox 160M", "full", 4),
    ],
)
def test_the_closed_form_follows_a_row_that_is_sliced_over_ranks(name: str, method: str, slices: int) -> None:
    """Of llama 8B's 8 key heads each goes to 2 of 16 ranks."""
    case = next(case for case in CASES if (case.name, case.method) == (name, method))
    cfg = run_of(replace(case, seq_len=case.seq_len * slices, supervised=case.supervised / slices))
    cfg = replace(cfg, compute=replace(cfg.compute, sequence_parallel=slices))
    work = work_of(cfg, shape_of(case.model), case.supervised)
    found = moments_of(case.model, shape_of(case.model), work, case.recompute)
    measured = trace(cfg, case.model, case.supervised).peak
    assert max(each.total for each in found.values()) == pytest.approx(measured, rel=0.005)
