"""The permutation: a bijection for every size, the same for ever, and as even as chance."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.stream.permutation import key_of, keys_of, permute, splitmix64

GOLDEN = {
    "key": 10758482223343512923,
    "ten": [4, 9, 3, 6, 1, 5, 7, 2, 0, 8],
    "alpaca": [23028, 18954, 5491, 33040, 33023],
    "large": [38435021702, 223587638562, 541000934911],
    "sha256": "b60c3e2a59b8f2ecf16233619be57eb3dc4298880d21f39025cc2c470d527fd2",
}
KEYS = st.integers(0, 2**64 - 1)
SIZES = sorted({1, 2, 3, 7, 52002} | {2**k + d for k in range(1, 17) for d in (-1, 0, 1)})


@pytest.mark.parametrize("size", SIZES)
def test_is_a_bijection(size: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key_of(7, size))), np.arange(size))


@given(size=st.integers(1, 5000), key=KEYS)
@settings(max_examples=50, deadline=None)
def test_is_a_bijection_for_any_size_and_key(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@given(st.lists(st.tuples(st.integers(1, 2**40), KEYS), min_size=1, max_size=20), st.data())
@settings(max_examples=50, deadline=None)
def test_every_element_has_its_own_size_and_key(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    index = [data.draw(st.integers(0, size - 1)) for size, _ in pairs]
    together = permute(index, [size for size, _ in pairs], np.array([key for _, key in pairs], np.uint64))
    alone = [int(permute(i, size, key)[0]) for i, (size, key) in zip(index, pairs, strict=True)]
    assert together.tolist() == alone
    assert all(0 <= value < size for value, (size, _) in zip(alone, pairs, strict=True))


def test_golden_values() -> None:
    """Never to change: a run that resumes under another numpy or system must find its order again."""
    # The first outputs of splitmix64 with seed 1234567, as in the generator's published test vectors.
    seeds = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert splitmix64(seeds).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert key_of(0, "row", "alpaca") == GOLDEN["key"]
    assert permute(np.arange(10), 10, 1).tolist() == GOLDEN["ten"]
    assert permute(np.arange(5), 52002, key_of(0, "row", "alpaca")).tolist() == GOLDEN["alpaca"]
    assert permute([0, 1, 2**40], 2**40 + 7, 2**64 - 1).tolist() == GOLDEN["large"]
    whole = permute(np.arange(52002), 52002, 42).astype("<i8").tobytes()
    assert hashlib.sha256(whole).hexdigest() == GOLDEN["sha256"]


def test_array_and_scalar_keys_agree() -> None:
    assert keys_of(key_of(3, "row"), [0, 5, 2**63]).tolist() == [key_of(3, "row", n) for n in (0, 5, 2**63)]
    assert len({key_of("a", "b"), key_of("b", "a"), key_of("ab"), key_of(1, 0), key_of(0, 1), key_of(0)}) == 6


@pytest.mark.parametrize("size", [200, 52002, 65536])
def test_looks_like_chance(size: int) -> None:
    """Two-dimensional chi-square, correlation of neighbours and of passes, each within 4 sigma of ideal."""
    passes = [permute(np.arange(size), size, key_of(0, "row", "source", number)) for number in range(20)]
    cells = max(4, min(64, math.isqrt(size // 20)))
    for order, following in pairwise(passes):
        grid = np.histogram2d(np.arange(size) * cells // size, order * cells // size, bins=cells)[0]
        expected = np.outer(grid.sum(1), grid.sum(0)) / size
        chi2, freedom = float(((grid - expected) ** 2 / expected).sum()), (cells - 1) ** 2
        assert abs(chi2 - freedom) < 4 * math.sqrt(2 * freedom)
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / math.sqrt(size)
        assert abs(np.corrcoef(order, following)[0, 1]) < 4 / math.sqrt(size)
