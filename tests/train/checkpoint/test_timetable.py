"""Checkpoints by the clock: every so many minutes, or the interval of Young's formula from the measured stall."""

from __future__ import annotations

import math

import pytest

from train.checkpoint.timetable import FIRST, Timetable


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_minutes_count_from_the_beginning_of_the_last_save() -> None:
    clock = Clock()
    table = Timetable(2.0, measure=False, gpus=8, now=clock)
    clock.now += 119
    assert not table.due(in_flight=False)
    clock.now += 1
    assert table.due(in_flight=False)
    table.begun()
    clock.now += 60
    assert not table.due(in_flight=True)
    assert table.published(5.0, 9.0) == ""


def test_without_minutes_the_clock_asks_for_none() -> None:
    clock = Clock()
    table = Timetable(0.0, measure=False, gpus=8, now=clock)
    clock.now += 1e9
    assert not table.due(in_flight=False)


def test_auto_measures_the_first_and_then_follows_the_formula() -> None:
    clock = Clock()
    table = Timetable(0.0, measure=True, gpus=1024, now=clock)
    assert [table.due(in_flight=False) for _ in range(FIRST)] == [False] * (FIRST - 1) + [True]
    table.begun()
    assert [table.due(in_flight=step < 2 * FIRST) for step in range(2 * FIRST)] == [False] * 2 * FIRST
    assert table.due(in_flight=False)  # the first failed, so it is tried again
    text = table.published(2.0, 30.0)
    # 419 failures of 16,384 GPUs in 54 days: one GPU of 1,024 fails every 178,158 s; sqrt(2 * 2 s * 178,158 s) = 844 s
    assert table.interval == pytest.approx(math.sqrt(2 * 2.0 * 16384 * 54 * 86400 / 419 / 1024))
    assert table.interval == pytest.approx(844, abs=1)
    assert text == (
        "checkpoint.every_steps: auto is a checkpoint every 14.1 min: training waits 2.00 s for it, and 1024 GPUs "
        "fail once in 2.1 days (Young 1974)"
    )
    assert table.published(3.0, 3.0) == ""  # said once
    table.begun()
    clock.now += 843
    assert not table.due(in_flight=False)
    clock.now += 2
    assert table.due(in_flight=False)


def test_auto_never_asks_for_more_than_one_in_flight_nor_more_than_the_minutes_allow() -> None:
    table = Timetable(0.0, measure=True, gpus=16384, now=Clock())
    table.published(0.001, 500.0)
    assert table.interval == 500.0
    table = Timetable(5.0, measure=True, gpus=8, now=Clock())
    assert table.published(1.0, 2.0).endswith(", and every 5 min are asked for")
    assert table.interval == 300.0
