"""docs/scaling.md is what its command writes, and its picture is drawn where matplotlib is."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scaling import DOCS, OPEN, page
from launch.plan_sweep import plot, sweep


@pytest.mark.slow
def test_the_scaling_page_is_what_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # without a corpus
    assert (DOCS / "scaling.md").read_text() == page(), "write it again: python -m benchmarks.scaling"


def test_a_sweep_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(sweep(["experiment=demo", *OPEN], "nodes=1,2"), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
