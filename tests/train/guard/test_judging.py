"""What is a spike, what a step's findings lead to, and which endings are no success; by hand and by property."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.schema import GuardConfig
from train.guard.judging import judge, notice, refuses, unlearnt, usual
from train.state import Health, TrainState

VALUES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60)
LN_1000 = math.log(1000)


def after(losses: list[float], norms: list[float] | None = None, **others: Any) -> Health:
    return Health(first_loss=losses[0], losses=losses, norms=norms or [1.0] * len(losses), **others)


def passed(cfg: GuardConfig, health: Health, step: int, loss: float, norm: float = 1.0) -> tuple[str, ...]:
    """Takes a step into ``health``; what was bad of it."""
    found = judge(cfg, health, loss, norm)
    notice(cfg, health, step, found, loss=loss, grad_norm=norm)
    return tuple(each.what for each in found)


def test_the_limit_is_that_of_a_hand_computation() -> None:
    # Median 5; deviations 0 1 1 2 45, so 1.4826 x 1; the share of few, 2 / 5 of 5, is larger.
    assert usual([3, 4, 5, 6, 50], 10) == (5, 5 + 10 * 2.0)
    hundred = [3.0, 7.0] * 50  # median 5, deviation 2
    assert usual(hundred, 10).limit == pytest.approx(5 + 10 * 1.4826 * 2)
    assert usual([2.0] * 100, 10).limit == pytest.approx(2 * 1.2)  # equal values: 2% of the median
    assert usual([2.0], 10).limit == pytest.approx(2 * 21)
    assert usual([0.0] * 100, 10, least=0.01).limit == pytest.approx(0.1)


@given(VALUES, st.floats(0.1, 50), st.floats(0.01, 100))
def test_the_limit_scales_with_its_values_and_knows_no_order(values: list[float], threshold: float, by: float) -> None:
    one, other = usual(values, threshold), usual([by * value for value in reversed(values)], threshold)
    assert other.limit == pytest.approx(by * one.limit)
    assert other.median == pytest.approx(by * one.median)
    assert one.limit >= one.median * (1 + 0.02 * threshold)


@given(VALUES, st.lists(st.floats(1e6, 1e30), max_size=29))
def test_fewer_than_half_of_the_values_cannot_move_the_limit_far(values: list[float], wild: list[float]) -> None:
    """A mean and a standard deviation would follow a single wild value."""
    wild = wild[: (len(values) - 1) // 2]
    assert usual([*values, *wild], 10).limit <= 1e3 * 50


@given(VALUES, st.floats(0, 1e3), st.floats(0, 1e3))
def test_a_warning_never_refuses_and_a_good_step_is_no_finding(values: list[float], loss: float, norm: float) -> None:
    health = after(values, values)
    found = judge(GuardConfig(), health, loss, norm)
    assert not refuses(found)
    for name, value, least in (("loss", loss, 0.01), ("grad_norm", norm, statistics.median(values))):
        assert (name in {each.what for each in found}) == (value > usual(values, 10.0, least).limit)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.inf), (2.0, math.nan)])
def test_what_is_not_finite_is_refused_from_the_first_step_on(loss: float, norm: float) -> None:
    for health in (Health(), after([2.0] * 9)):
        (found,) = judge(GuardConfig(), health, loss, norm)
        assert (found.what, found.action) == ("non_finite", "rollback")
        assert refuses([found])


def test_the_spikes_of_the_issue_are_seen_from_the_second_step_on() -> None:
    for count in (1, 5, 100):
        found = judge(GuardConfig(grad_norm="skip"), after([4.3] * count, [0.7] * count), 9700.0, 0.7e6)
        assert [each.what for each in found] == ["loss", "grad_norm"]
        assert (found[0].median, found[0].count) == (4.3, count)
        assert refuses(found)
    assert judge(GuardConfig(), after([0.1] * 100, [0.4145] * 100), 0.1, 2.88) == ()  # a healthy run's tail
    assert judge(GuardConfig(), Health(), 9700.0, 1e6) == ()  # nothing to compare the first step with


def test_an_incident_opens_with_the_first_bad_step_and_closes_after_patience_good_ones() -> None:
    cfg, health = GuardConfig(patience=3, loss="skip"), Health()
    for step in range(1, 6):
        assert passed(cfg, health, step, 2.0) == ()
    assert passed(cfg, health, 6, 900.0) == ("loss",)
    assert (health.incident, health.last_bad, health.bad, health.withheld) == (6, 6, 1, True)
    for step in (7, 8):
        passed(cfg, health, step, 2.0)
    assert passed(cfg, health, 9, math.nan) == ("non_finite",)
    assert (health.incident, health.last_bad, health.bad, health.refused) == (6, 9, 2, [6, 9])
    for step in (10, 11):
        passed(cfg, health, step, 2.0)
        assert health.incident == 6
    passed(cfg, health, 12, 2.0)
    assert (health.incident, health.bad, health.withheld) == (0, 0, False)
    assert max(health.losses) == 2.0  # bad steps never become what is usual
    assert len(health.losses) == 10


def test_what_is_only_warned_of_withholds_nothing_and_refusals_leave_the_window() -> None:
    cfg, health = GuardConfig(patience=3, window=10), Health()
    passed(cfg, health, 1, 2.0)
    assert passed(cfg, health, 2, 900.0) == ("loss",)
    assert (health.incident, health.withheld, health.refused, health.latest) == (2, False, [], [2.0, 900.0])
    passed(cfg, health, 3, math.nan)
    assert (health.withheld, health.refused, health.latest) == (True, [3], [2.0, 900.0])
    for step in range(4, 14):
        passed(cfg, health, step, 2.0)
    assert health.refused == []
    assert len(health.losses) == len(health.norms) == 10


def test_a_run_that_went_back_is_healthy_after_as_many_good_steps_as_end_an_incident() -> None:
    cfg, health = GuardConfig(patience=3), after([2.0] * 9)
    assert passed(cfg, health, 10, math.nan) == ("non_finite",)
    health.returned = True
    for step in (11, 12, 13):
        assert unlearnt(step, step - 1, health, 1000).startswith("it went back")
        assert passed(cfg, health, step, 2.0) == ()
    assert not health.returned
    assert unlearnt(13, 12, health, 1000) == ""


def test_counters_survive_json() -> None:
    state = TrainState(step=7, spikes=2, health=after([0.1 + 0.2, 3.0], incident=5, refused=[5, 6], withheld=True))
    again = TrainState()
    again.load(state.to_dict())
    assert again == state
    old = {key: value for key, value in state.to_dict().items() if key not in ("health", "spikes")}
    again = TrainState()
    again.load(old)  # a checkpoint of a release without a guard
    assert (again.step, again.health) == (7, Health())


@pytest.mark.parametrize(
    ("step", "updates", "health", "why"),
    [
        (9, 9, after([7.0], latest=[6.9, 6.8]), ""),
        (9, 9, after([2.0], latest=[9.0]), ""),  # worse, and better than 1.5 x ln(1000)
        (9, 9, after([2.0], latest=[10.4]), "it diverged: the median loss of its last 1 updates is 10.4"),
        (9, 9, after([30.0], latest=[12.0]), ""),  # a poor base that learns
        (9, 9, after([2.0], latest=[2.0, 2.0, 9e3, 2.0, 9e3]), ""),
        (8, 4, after([2.0], latest=[2.0]), "only 4 of its 8 steps made an update that stayed"),
        (8, 0, Health(), "only 0 of its 8 steps"),
        (9, 7, after([2.0], latest=[2.0], refused=[8, 9]), "its last two steps made no update"),
        (9, 8, after([2.0], latest=[2.0], refused=[9]), ""),
        (9, 7, after([2.0], latest=[2.0], refused=[7, 8]), ""),
        (9, 7, after([2.0], latest=[2.0], last_bad=8, returned=True), "it went back, and ended too soon"),
        (1, 1, after([9.0], latest=[9.0]), ""),
    ],
)
def test_which_endings_are_no_success(step: int, updates: int, health: Health, why: str) -> None:
    found = unlearnt(step, updates, health, 1000)
    assert found.startswith(why) if why else not found, found
    assert pytest.approx(10.36, abs=0.01) == LN_1000 * 1.5
