"""When silence is a hang, and whose: cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from train.watchdog.board import Phase, Place
from train.watchdog.limits import LIMITS, Seen, find_hang, limit_of, p99

FIRST = Seen(0, 100, Phase.STEP, Place.UPDATING, step=7, position=40, quiet=0.0, stopped=0.0, state="S")
SECOND = replace(FIRST, rank=1, pid=101)
TIMES = [2.0] * 50


def test_p99_is_the_nearest_rank() -> None:
    assert p99([]) == 0.0
    assert p99([3.0, 1.0]) == 3.0
    assert p99([float(each) for each in range(1, 101)]) == 99.0
    assert p99([float(each) for each in range(1, 201)]) == 198.0


def test_a_step_may_take_three_times_p99_and_the_minimum() -> None:
    assert limit_of(Phase.STEP, [2.0, 4.0], 30.0) == 30.0
    assert limit_of(Phase.STEP, [2.0, 40.0], 30.0) == 120.0
    assert limit_of(Phase.STEP, [0.1] * 200 + [50.0], 30.0) == 30.0  # one slow step of 201 is above p99


def test_other_phases_have_their_own_limit_or_more() -> None:
    assert {*LIMITS} == {*Phase} - {Phase.STEP}
    for phase, limit in LIMITS.items():
        assert limit_of(phase, [2.0], 30.0) == limit
        assert limit_of(phase, [limit], 30.0) == 3 * limit


def test_the_rank_behind_is_named_and_the_one_that_waits_is_not() -> None:
    reading = replace(SECOND, place=Place.READING, position=38, quiet=31.0)
    hang = find_hang([replace(FIRST, quiet=30.5), reading], TIMES, 30.0)
    assert hang is not None
    assert hang.ranks == (1,)
    assert hang.text == (
        "rank 1 (process 101, it sleeps) is without a sign of life for 31 s, at step 8, waiting for its rows (30 s are "
        "allowed: 3 x p99 of its steps, 30 s at least); 1 more of this node wait for it"
    )


def test_nobody_hangs_while_the_rank_behind_is_within_its_limit() -> None:
    waiting = replace(FIRST, quiet=500.0)
    for phase in (Phase.EVALUATION, Phase.CHECKPOINT, Phase.COMPILATION, Phase.FIRST_STEP):
        assert find_hang([waiting, replace(SECOND, phase=phase, position=39, quiet=500.0)], TIMES, 30.0) is None
    assert find_hang([waiting, replace(SECOND, position=39, quiet=29.0)], TIMES, 30.0) is None
    assert find_hang([waiting, replace(SECOND, quiet=500.0, phase=Phase.COMPILATION)], TIMES, 30.0) is None
    assert find_hang([waiting, replace(SECOND, position=39, quiet=100.0)], [40.0] * 5, 30.0) is None


def test_if_none_is_behind_the_cause_is_elsewhere() -> None:
    hang = find_hang([replace(FIRST, quiet=31.0), replace(SECOND, quiet=31.0)], TIMES, 30.0)
    assert hang is not None
    assert hang.ranks == (0, 1)
    assert "none is behind" in hang.text


def test_a_rank_alone_is_named() -> None:
    hang = find_hang([replace(FIRST, quiet=31.0)], TIMES, 30.0)
    assert hang is not None
    assert hang.ranks == (0,)
    assert "none is behind" not in hang.text


@pytest.mark.parametrize("phase", [*Phase])
def test_a_stopped_rank_hangs_in_every_phase(phase: Phase) -> None:
    stopped = replace(SECOND, phase=phase, stopped=30.0, state="T", position=99)
    hang = find_hang([FIRST, stopped], TIMES, 30.0)
    assert hang is not None
    assert hang.ranks == (1,)
    assert hang.text.startswith("rank 1 (process 101) is stopped by a signal, ")
    assert find_hang([FIRST, replace(stopped, stopped=29.0)], TIMES, 30.0) is None
