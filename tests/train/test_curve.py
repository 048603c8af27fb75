"""A run on real rows against the loop anyone would write, and TRL's trainer against that loop too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.curve import STEPS
from benchmarks.trl_curve import RIGHT, Course, apart, lay_out


@pytest.fixture(scope="module")
def course(real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Course:
    model, alpaca = real_data("weights/stories260K/hf"), real_data("alpaca/alpaca_data.json.gz")
    return lay_out(model, alpaca, tmp_path_factory.mktemp("curve"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_steps_on_alpaca_follow_a_plain_loop(course: Course) -> None:
    """Two ranks, ZeRO-2, packed, targets-only head, against none of that. The worst difference is printed."""
    found = course.corral()
    assert len(found) == len(course.wanted) == STEPS
    assert course.wanted[-1] < course.wanted[0] - 0.1
    worst = max(abs(one - other) for one, other in zip(found, course.wanted, strict=True))
    print(f"losses from {found[0]:.4f} to {found[-1]:.4f}, worst difference {worst:.1e}")
    assert worst <= 1e-4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["padded", "ranks", "wrapped"])
def test_trl_follows_it_where_its_samples_do_not_see_one_another(course: Course, way: str) -> None:
    """Accumulated, on one rank and on two; "wrapped" packing leaks, so that the comparison can fail."""
    pytest.importorskip("trl", reason="TRL is in the extra `bench`: pip install -c constraints.txt -e .[bench]")
    worst = apart(course.trl(way), course.wanted)
    print(f"{way}: worst relative difference {worst:.1e}")
    assert (worst <= RIGHT) == (way != "wrapped")
    assert worst < 0.2
