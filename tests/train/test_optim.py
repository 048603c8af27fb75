"""The learning-rate schedules: exact at their corners, never above the peak or below the floor."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.schema import OptimConfig, ScheduleConfig
from train.optim import lr_at, warmup_length

OPTIM = OptimConfig(lr=2.0)


def curve(total: int, **schedule: object) -> list[float]:
    kind = ScheduleConfig(**schedule)  # type: ignore[arg-type]
    return [lr_at(step, optim=OPTIM, schedule=kind, total_steps=total) for step in range(total)]


def test_warmup_reaches_the_peak_at_its_last_step() -> None:
    assert curve(10, kind="constant", warmup_steps=4) == [0.5, 1.0, 1.5] + [2.0] * 7
    assert warmup_length(ScheduleConfig(warmup_fraction=0.03), 100) == 3


def test_cosine_and_linear_end_at_the_floor() -> None:
    cosine = curve(101, kind="cosine", min_ratio=0.1)
    assert cosine[0] == 2.0
    assert cosine[50] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert cosine[100] == pytest.approx(0.2)
    assert curve(5, kind="linear") == [2.0, 1.5, 1.0, 0.5, 0.0]


def test_wsd_holds_then_decays() -> None:
    found = curve(10, kind="wsd", decay_fraction=0.4)
    assert found[:6] == [2.0] * 6
    assert found[6:] == pytest.approx([1.5, 1.0, 0.5, 0.0])


@given(
    st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    st.integers(1, 60),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
)
def test_bounds(kind: str, total: int, warmup: float, floor: float) -> None:
    rates = curve(total, kind=kind, warmup_fraction=warmup, min_ratio=floor)
    start = warmup_length(ScheduleConfig(warmup_fraction=warmup), total)
    assert all(0 <= rate <= 2.0 + 1e-12 and math.isfinite(rate) for rate in rates)
    assert all(rate >= 2.0 * floor - 1e-12 for rate in rates[start:])
    assert all(a >= b - 1e-12 for a, b in zip(rates[start:], rates[start + 1 :], strict=False))
