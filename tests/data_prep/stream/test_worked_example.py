"""The examples in the docstrings of ``windows`` and ``phases``, with the numbers that they print."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from data_prep.stream.phases import Phase, Schedule
from data_prep.stream.windows import Place, Planner
from tests.data_prep.streams import FakeSplit

WEIGHTS = [Fraction(2, 3), Fraction(1, 3)]
SPLITS = {
    "a": FakeSplit("a", np.array([5, 6, 7], np.int32), np.array([2, 2, 2], np.int32)),
    "b": FakeSplit("b", np.array([4, 8], np.int32), np.array([1, 3], np.int32)),
}


def test_three_draws_of_two_sources() -> None:
    schedule = Schedule(WEIGHTS, [None, None])
    assert [schedule.counts(draws) for draws in (0, 3, 6)] == [[0, 0], [2, 1], [4, 2]]
    planner = Planner(SPLITS, seed=0, seq_len=12, packing="exact")
    window = planner.plan(Place(1, 3, 6, before=(2, 1), after=(4, 2)))
    assert [row.samples for row in window.packed(0, 2)] == [((1, 1),), ((0, 0), (0, 2))]
    assert window.tokens.tolist() == [8, 5, 7]
    assert window.ends.tolist() == [0, 1, 3]


def test_a_source_that_retires_begins_a_phase() -> None:
    schedule = Schedule(WEIGHTS, [None, 1])
    first = Phase(start=0, base=(0, 0), shares=(1431655765, 715827883))
    second = Phase(start=2, base=(1, 1), shares=(2147483648, 0))
    assert schedule.at(0) == (first, 2)
    assert schedule.at(2) == (second, None)
    assert [schedule.counts(draws) for draws in range(5)] == [[0, 0], [1, 0], [1, 1], [2, 1], [3, 1]]
