"""debug=profile: the chosen steps are traced, neighbours as one, and no report is changed or lost."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.compose import compose
from train.tracking.profile import Profiler


def working(steps: int) -> Iterator[Any]:
    """A report per step; step N multiplies matrices of N x N."""
    for step in range(1, steps + 1):
        torch.ones(step, step) @ torch.ones(step, step)
        yield step


def products(trace: Path) -> list[int]:
    """The sizes of the matrix products in a trace: which steps it has seen."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return [each["args"]["Input Dims"][0][0] for each in events if each.get("name") == "aten::mm"]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ([4, 5, 7], {"steps-4-5": [4, 5], "step-7": [7]}),
        ([6, 9, 10, 11], {"step-6": [6], "steps-9-10": [9, 10]}),  # the run ends after step 10
        ([99], {}),
    ],
)
def test_chosen_steps_are_traced(
    tmp_path: Path, chosen: list[int], expected: dict[str, list[int]], capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    assert list(Profiler(chosen, tmp_path / "profile", said.append).watch(working(10), after=0)) == [*range(1, 11)]
    traces = {path.name.removesuffix(".trace.json.gz"): path for path in (tmp_path).glob("profile/*.trace.json.gz")}
    assert {name: products(path) for name, path in traces.items()} == expected
    assert len(said) == len(expected)
    assert "".join(capfd.readouterr()) == ""  # torch's profiler is silent
    for name in expected:
        assert "aten::mm" in (tmp_path / "profile" / f"{name}.txt").read_text()


def test_a_resumed_run_counts_on(tmp_path: Path) -> None:
    assert list(Profiler([5], tmp_path, print).watch(iter([]), after=4)) == []
    assert not [*tmp_path.iterdir()]
    assert list(Profiler([5], tmp_path, print).watch(working(2), after=4)) == [1, 2]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-5.trace.json.gz", "step-5.txt"]


def test_the_entry_ends_the_run_after_the_chosen_steps() -> None:
    cfg = compose(["experiment=demo", "debug=profile"])
    assert max(cfg.tracker.profile_steps) == cfg.schedule.max_steps
