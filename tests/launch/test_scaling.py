"""docs/scaling.md is what its command writes, and its picture is drawn where matplotlib is."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scaling import DOCS, OPEN, RUNS, page
from launch.plan.plot import plot
from launch.plan.sweep import sweep


@pytest.mark.slow
def test_the_scaling_page_is_what_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # without a corpus
    assert (DOCS / "scaling.md").read_text() == page(), "write it again: python -m benchmarks.scaling"


def test_a_sweep_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    # 70 B has no plan on one node, and GPT-2 is too small for a speed: what is missing is drawn as missing
    for name, overrides in {"70b": RUNS["70b-full"][1], "gpt2": ("experiment=alpaca_gpt2_full",)}.items():
        points = sweep([*overrides, "cluster.gpus_per_node=8", *OPEN], "nodes=1,8")
        plot("nodes", points, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
