"""Every experiment says in its head what it needs, and that is what the plan says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from conf.compose import ROOT, compose, groups
from launch.plan.table import planned, summary
from train.plan import GIB

EXPERIMENTS = groups([ROOT])["experiment"]


def head(name: str) -> list[str]:
    lines = (ROOT / "experiment" / f"{name}.yaml").read_text().splitlines()
    return [line for line in lines if line.startswith("#")]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_head_comment_states_the_plan(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # without a corpus, so that every token counts as a target
    demo = compose(["model=demo_llama"]).model
    made = tmp_path / "outputs" / "demo" / "export"
    made.mkdir(parents=True)
    (made / "config.json").write_text(json.dumps({**(demo.config or {}), "vocab_size": demo.vocab_size}))
    command = next(line for line in head(name) if "python -m launch experiment=" in line)
    overrides = re.findall(r"\S+=\S+", command)
    answer = planned(compose(overrides))
    assert f"# Plan: {summary(answer)}" in head(name)
    assert answer.found.chosen.device < answer.found.gpu_memory_gib * GIB
