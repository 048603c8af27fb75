"""Predicted speed against published tables, rows held out of the fit among them; failures and checkpoints."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.fit_throughput import HELD_OUT, TABLE, errors, fit, read
from train.plan.speed import FITTED, Job, checkpoint_interval, fitted, goodput, speed


def job(**changed: Any) -> Job:
    matrices = 32 * 12 * 4096**2
    values: dict[str, Any] = {"gpu": "h100", "gpus": 8, "parameters": 6.66e9, "matrices": matrices, "hidden": 4096}
    values |= {"layers": 32, "vocab": 50368, "seq_len": 2048, "micro_tokens": 12288, "step_tokens": 12288}
    return Job(**(values | {"recomputed": 0.0, "stage": 3} | changed))


def test_speed_is_near_the_published_figure_and_falls_with_recomputation() -> None:
    found, again = speed(job()), speed(job(recomputed=1.0))
    assert not isinstance(found, str)
    assert not isinstance(again, str)
    assert found.tokens_per_second_per_gpu == pytest.approx(10643, rel=0.05)  # MPT-7B on 8 H100, LLM Foundry
    assert again.tokens_per_second_per_gpu < 0.85 * found.tokens_per_second_per_gpu


def test_far_outside_the_fitted_rows_no_speed_is_given() -> None:
    refused = speed(job(gpus=16384))
    assert isinstance(refused, str)
    assert "far outside the fitted rows" in refused
    adapters, own = speed(job(method="adapter")), speed(job())
    assert not isinstance(adapters, str)
    assert not isinstance(own, str)
    assert any("adapters" in note for note in adapters.notes)
    assert adapters.high / adapters.low > own.high / own.low


def test_the_stored_constants_are_those_of_the_stored_table() -> None:
    held: list[float] = []
    for gpu, stored in fitted().items():
        rows = [row for row in read(TABLE) if row["gpu"].startswith(gpu) and row["source"] == "llm-foundry"]
        seen = [row for place, row in enumerate(rows) if place % 5 not in HELD_OUT]
        assert fit(seen) == pytest.approx(stored["constants"], rel=1e-3), (
            f"{FITTED}: python -m benchmarks.fit_throughput"
        )
        left = [row for place, row in enumerate(rows) if place % 5 in HELD_OUT]
        held += [abs(float(each)) for each in errors(left, stored["constants"])]
    held.sort()
    assert len(held) >= 30
    assert held[len(held) // 2] <= 0.05
    assert sum(each <= 0.1 for each in held) / len(held) >= 0.9


def test_goodput_falls_with_the_number_of_gpus() -> None:
    few, many = goodput(30.0, 3600.0, 64), goodput(30.0, 3600.0, 16384)
    assert 0.98 < few < 1.0
    assert many < 0.9 * few


def test_the_interval_between_checkpoints_loses_least() -> None:
    """Young's interval: a little more or less often costs more."""
    best = checkpoint_interval(30.0, 1024)
    lost = [1.0 - goodput(30.0, best * factor, 1024) for factor in (0.5, 1.0, 2.0)]
    assert lost[1] == min(lost)
