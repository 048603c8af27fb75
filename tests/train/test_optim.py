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


def test_cosine_and_linear_reach_the_floor_after_the_last_step() -> None:
    assert curve(4, kind="linear") == [2.0, 1.5, 1.0, 0.5]
    # 1 + cos(pi k / 4) for k of 0, 1, 2, 3
    assert curve(4, kind="cosine") == pytest.approx([2.0, 1.0 + 0.5**0.5, 1.0, 1.0 - 0.5**0.5])
    with_floor = curve(100, kind="cosine", min_ratio=0.1)
    assert with_floor[50] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert 0.2 < with_floor[99] < 0.201
    assert curve(6, kind="linear", warmup_steps=2) == [1.0, 2.0, 2.0, 1.5, 1.0, 0.5]


def test_wsd_holds_then_decays() -> None:
    found = curve(10, kind="wsd", decay_fraction=0.4)
    assert found[:7] == [2.0] * 7
    assert found[7:] == pytest.approx([1.5, 1.0, 0.5])
    assert curve(4, kind="wsd", decay_fraction=1.0) == curve(4, kind="linear")


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("total", [1, 2, 4, 100])
def test_every_step_learns(kind: str, total: int) -> None:
    assert min(curve(total, kind=kind)) > 0.0
    assert min(curve(total, kind=kind, warmup_fraction=0.5)) > 0.0


@pytest.mark.parametrize(("kind", "name"), [("linear", "linear"), ("cosine", "cosine")])
def test_the_decay_is_that_of_transformers(kind: str, name: str) -> None:
    """Its warmup begins at 0 and reaches the peak one step later than ours; behind it the rates are the same."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=20)
    theirs = []
    for _ in range(20):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert curve(20, kind=kind, warmup_steps=3)[3:] == pytest.approx(theirs[3:])


@given(
    st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    st.integers(1, 60),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
)
def test_bounds(kind: str, total: int, warmup: float, floor: float) -> None:
    rates = curve(total, kind=kind, warmup_fraction=warmup, min_ratio=floor)
    start = warmup_length(ScheduleConfig(warmup_fraction=warmup), total)
    assert all(0 < rate <= 2.0 + 1e-12 and math.isfinite(rate) for rate in rates)
    assert all(rate >= 2.0 * floor - 1e-12 for rate in rates[start:])
    assert all(a >= b - 1e-12 for a, b in zip(rates[start:], rates[start + 1 :], strict=False))
