"""Compiled blocks stay compiled through evaluation, and a run says what was compiled again or left eager, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo import utils

from tests.end_to_end.commands import call, finish, lines, start, tiny_run
from train.evaluate.held_out import evaluating
from train.model import compiled
from train.model.compiled import Compilations, compilations, compile_blocks, eager

RUN = "from train.model import compiled; compiled.BACKEND = 'eager'\nfrom train import __main__ as command\n"
"""A run whose graphs torch calls as they are: generating and compiling C++ for them takes a minute and changes nothing
about which calls are compiled."""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compilations]:
    """No compiled function and no count of an earlier test."""
    torch._dynamo.reset()
    utils.clear_compilation_metrics()
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    monkeypatch.setattr(compiled, "compilations", counts := Compilations())
    with torch._dynamo.config.patch(recompile_limit=8):
        yield counts
    torch._dynamo.reset()
    utils.clear_compilation_metrics()


class Times(nn.Module):
    def forward(self, x: torch.Tensor, factor: str) -> torch.Tensor:
        return x * len(factor)


def test_evaluation_neither_compiles_nor_counts(fresh: Compilations) -> None:
    block = Times()
    compile_blocks([block])
    assert torch._dynamo.config.recompile_limit == compiled.RECOMPILE_LIMIT
    x = torch.ones(3)
    for number in range(1, 20):  # more calls of new kinds than torch's own limit of versions
        with evaluating(block):
            assert float(block(x, "x" * number)[0]) == number
    assert (fresh.calls, fresh.graphs) == (0, 0)
    block(x, "ab")
    with eager():
        block(x, "abc")
    block(x, "ab")
    assert fresh.take() == {
        "perf/compiled_calls": 2, "perf/compiled_graphs": 1, "perf/recompilations": 0, "perf/left_eager": 0
    }  # fmt: skip
    assert fresh.take()["perf/compiled_calls"] == 0
    assert fresh.news() == ([], [])


def test_recompilations_and_what_is_left_eager_are_named_once(
    fresh: Compilations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "RECOMPILE_LIMIT", 2)
    torch._dynamo.config.recompile_limit = 2
    block = Times()
    compile_blocks([block])
    x = torch.ones(3)
    block(x, "a")
    assert fresh.news() == ([], [])
    block(x, "ab")
    (again,), none = fresh.news()
    assert again.startswith("forward (test_compiled.py:")
    assert "was compiled again: 0/0: " in again
    assert "factor" in again
    assert not none
    for factor in ("abc", "abcd", "ab", "abc"):
        block(x, factor)
    (), (left,) = fresh.news()
    assert left.startswith("forward (test_compiled.py:")
    assert "runs eagerly: Dynamo recompile limit exceeded; a version more was asked for: " in left
    assert fresh.news() == ([], [])
    metrics = fresh.take()
    assert (metrics["perf/recompilations"], metrics["perf/left_eager"]) == (1, 1)
    assert metrics["perf/compiled_calls"] == 3  # "a", "ab" and "ab" again; the others ran eagerly


def test_a_run_that_compiles_nothing_says_nothing() -> None:
    assert Compilations().take() == {}
    assert isinstance(compilations, Compilations)


def trained(folder: Path, name: str, *more: str) -> list[float]:
    """Calls of compiled graphs in every step of a real run of six steps."""
    arguments = tiny_run(folder, name, "compute.kernels=compile", "zero=2", "schedule.max_steps=6", *more)
    if not (folder / "corpus" / "MANIFEST.json").exists():
        code, output = call("data_prep", *arguments)
        assert code == 0, output
    code, output = finish(start([sys.executable, "-c", RUN + "command.main()", *arguments]), 240)
    assert code == 0, output
    steps = [line for line in lines(folder / name / "metrics.jsonl") if "train/loss" in line]
    assert len(steps) == 6
    assert {line["perf/left_eager"] for line in steps} == {0}
    events = [line for line in lines(folder / name / "events.jsonl") if line["kind"] == "recompiled"]
    assert len(events) == len({event["text"] for event in events}) <= steps[-1]["perf/recompilations"]
    return [line["perf/compiled_calls"] for line in steps]


@pytest.mark.slow
def test_evaluation_at_any_time_leaves_every_step_as_compiled_as_without(tmp_path: Path) -> None:
    """Generation made more versions than torch's limit, and the run trained eagerly: 0 calls per step."""
    without = trained(tmp_path, "without", "evaluation=skip")
    assert min(without) > 0
    every = ("evaluation.at_start=true", "evaluation.every_steps=2", "evaluation.at_end=true")
    more = ("evaluation.generate_rows=4", "evaluation.max_new_tokens=16")
    assert trained(tmp_path, "with", *every, *more) == without
