"""The data engine's benchmark on a tiny corpus, Corral alone: the script runs, and its checks see what they should."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.data_engine import Found, measure
from benchmarks.data_table import agreement, checks, show


@pytest.mark.slow
def test_the_benchmark_measures_and_checks_corral(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_TOKENS", "1e5")
    found = measure(tmp_path, ["corral"], divisor=100, rounds=1)
    corral = found["corral"]
    assert len(corral.begin) == 10
    assert checks(corral) == {
        "same after a resume": f"{len(corral.after)} of {len(corral.after)}",
        "same on 2 ranks": "10 of 10",
        "same on 4 ranks": "10 of 10",
        "epoch: lost, repeated": "0, 0",
        "epoch: steps per rank": ", ".join([str(len(corral.once[0]))] * 3),
    }
    assert corral.after
    assert all(corral.speeds[0][key] > 0 for key in ("first_ms", "rate"))
    written = io.StringIO()
    show(found, Console(width=120, file=written))
    assert "million tokens/s" in written.getvalue()


def test_lost_repeated_and_other_samples_are_seen() -> None:
    begin, other = [[[0, 0], [0, 1]]], [[[0, 0]], [[0, 2]]]
    resumed = [{"next": [[[0, 3]]]}]
    found = Found({}, rows=4, resumes=resumed, begin=begin, after=begin, ranks={2: [[each] for each in other]})
    found.once = [[[[0, 0], [0, 1]]], [[[0, 1]]]]
    assert checks(found) == {
        "same after a resume": "0 of 1; 0% of samples",
        "same on 2 ranks": "0 of 1; 50% of samples",
        "epoch: lost, repeated": "2, 1",
        "epoch: steps per rank": "1, 1",
    }
    assert agreement(begin, begin) == (1, "1 of 1")
    assert agreement(begin, [])[0] == 0
