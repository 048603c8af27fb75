"""ceil_div against fractions, where floats would be wrong."""

from __future__ import annotations

import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from conf.whole_numbers import ceil_div


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**20))
def test_ceil_div_is_the_exact_ceiling(a: int, b: int) -> None:
    assert ceil_div(a, b) == math.ceil(Fraction(a, b))
