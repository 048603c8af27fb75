"""The closed form of activation memory against fake tensors of the whole step, and that trace against torch's own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.plan_accuracy import CASES, MODELS, Case, closed, line, mem_tracker, targets_of, traced
from benchmarks.plan_accuracy import config as run_of
from launch.torchrun import ROOT, child_environment
from train.families import shape_of
from train.plan.activations import step_peaks as moments_of
from train.plan.memory import work_of
from train.trace import FEW, PHASES, step_peaks, trace

LOW = 0.02
"""The formulas may say at most so much less than is needed."""


@pytest.mark.slow
def test_the_closed_form_is_within_bounds_of_the_trace() -> None:
    assert len(CASES) >= 16
    assert {case.model["model_type"] for case in CASES} == {model["model_type"] for model in MODELS.values()}
    found = [(case, closed(case), traced(case)) for case in CASES]
    errors = [predicted / measured - 1 for _, predicted, measured in found]
    said = "\n".join(line(*each) for each in found)
    assert statistics.median(abs(error) for error in errors) <= 0.015, said
    assert max(abs(error) for error in errors) <= 0.03, said
    assert min(errors) >= -LOW, said


CHOICES = {
    "name": st.sampled_from(sorted(name for name in MODELS if "70b" not in name)),
    "method": st.sampled_from(("full", "lora")),
    "recompute": st.sampled_from(("none", "selective", "full")),
    "seq_len": st.sampled_from((512, 1024, 2048)),
    "supervised": st.sampled_from((0.01, 0.1, 0.4, 1.0)),
    "dtype": st.sampled_from(("bf16", "fp32")),
    "dropout": st.sampled_from((0.0, 0.1)),
}


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.builds(Case, **CHOICES))
def test_the_closed_form_is_within_bounds_for_other_cases(case: Case) -> None:
    found = closed(case) / traced(case) - 1
    assert -LOW <= found <= 0.03, line(case, closed(case), traced(case))


FOLLOWED = [
    next(replace(case, layers=FEW) for case in CASES if (case.name, case.method) == wanted)
    for wanted in (
        ("llama-3.1-8b", "full"),
        ("gpt2", "lora"),
        ("gemma-2-2b", "full"),
        ("phi-3-mini-4k-instruct", "lora"),
    )
]


@pytest.mark.parametrize("case", FOLLOWED, ids=lambda case: f"{case.name}-{case.method}-{case.recompute}")
def test_formulas_and_trace_agree_with_torchs_mem_tracker(case: Case) -> None:
    found = mem_tracker(case)
    assert max(step_peaks(run_of(case), case.model, FEW, targets_of(case)).values()) == pytest.approx(found, rel=0.01)
    assert closed(case) == pytest.approx(found, rel=0.02)


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
        ("llama-3.1-8b", "full", 2),
        ("llama-3.1-8b", "lora", 16),
        ("gpt2", "full", 4),
        ("gpt2", "lora", 2),
        ("pythia-160m", "full", 4),
        ("phi-3-mini-4k-instruct", "full", 2),
        ("gemma-2-2b", "full", 2),
        ("olmo-2-0425-1b", "full", 2),
        ("phi-2", "full", 2),
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
