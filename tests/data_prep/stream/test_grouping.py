"""Samples of a step that begin alike meet in rows: the same samples, in fewer rows, and none pays for what is paid."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.stream import grouping
from data_prep.stream.forest import Forest
from data_prep.stream.steps import GlobalStep
from data_prep.stream.stream import Stream
from tests.data_prep.streams import FakeSplit, all_samples, assert_resumes_exactly, data_config

PREFIXES = ((1,) * 12, (1,) * 12 + (2,) * 9, (1,) * 12 + (3,) * 10, (4,) * 15)
PARENTS = [0, 0, 1, 1, 0]
SIZES = [0, 12, 21, 22, 15]


def path(number: int) -> set[int]:
    return {number} | (path(PARENTS[number]) if number else set())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 4)), min_size=1, max_size=120), st.integers(1, 40))
def test_any_samples_are_dealt_once_to_rows_that_hold_them(pieces: list[tuple[int, int]], global_size: int) -> None:
    lengths = np.array([rest + SIZES[number] for rest, number in pieces], np.int32)
    split = FakeSplit("a", lengths, lengths * 0, PREFIXES, np.array([number for _, number in pieces], np.int32))
    data = data_config(["a"], share_prefix=True, seq_len=64)
    steps = list(Stream({"a": split}, data, seed=3, global_size=global_size))
    assert sorted(sample for _, sample in all_samples(steps)) == list(range(len(pieces)))
    apart = list(Stream({"a": split}, replace(data, share_prefix=False), seed=3, global_size=global_size))
    for step, without in zip(steps, apart, strict=True):
        assert step.filled <= without.filled
        for row in step.rows:
            paid = set().union(*(path(pieces[sample][1]) for _, sample in row.samples)) - {0}
            rest = sum(pieces[sample][0] for _, sample in row.samples)
            assert rest + sum(SIZES[one] - SIZES[PARENTS[one]] for one in paid) <= 64


def test_a_sample_leaves_to_an_earlier_one_what_both_begin_with() -> None:
    forest = Forest.of([FakeSplit("a", np.zeros(1, np.int32), np.zeros(1, np.int32), prefixes=PREFIXES)])
    assert (forest.sizes, forest.parents) == (SIZES, PARENTS)
    assert forest.shared_in([2, 3, 1, 4, 0, 3, 4]) == [(0, 0), (0, 12), (0, 12), (3, 0), (4, 0), (1, 22), (3, 15)]


def test_the_example_of_the_docstring() -> None:
    split = FakeSplit("a", np.zeros(1, np.int32), np.zeros(1, np.int32), ((1,) * 4, (1,) * 4 + (2,) * 3))
    tokens, prefix = np.array([7, 5, 9, 8, 2]), np.array([1, 0, 2, 2, 0])
    rows = grouping._packed(tokens, prefix, Forest.of([split]), 12)
    assert [["abcde"[sample] for sample in row] for row in rows] == [["b", "a"], ["e", "c", "d"]]


def test_samples_stay_in_their_rows_where_grouping_would_need_more() -> None:
    """3 and 7 begin alike and would make a piece of 8, which fits beside neither 9."""
    lengths, numbers = np.array([3, 9, 7, 9], np.int32), np.array([1, 0, 1, 0], np.int32)
    split = FakeSplit("a", lengths, lengths // 2, ((1, 1),), numbers)
    assert len(grouping._packed(lengths.astype(np.int64), numbers.astype(np.int64), Forest.of([split]), 16)) == 3
    (step,) = Stream({"a": split}, data_config(["a"], share_prefix=True, seq_len=16), seed=1, global_size=2)
    assert (step.filled, step.samples, step.positions) == (2, 4, 28)


def test_sources_have_common_prefixes_in_any_order() -> None:
    """Those of an earlier release have the longest first."""
    nothing = np.zeros(1, np.int32)
    own = FakeSplit("a", nothing, nothing, PREFIXES[::-1])
    other = FakeSplit("b", nothing, nothing, ((1,) * 12 + (2,) * 5, (0,) * 8))
    forest = Forest.of([own, other])
    assert forest.sizes == [0, 8, 12, 17, 21, 22, 15]
    assert forest.parents == [0, 0, 0, 2, 3, 2, 0]
    assert [each.tolist() for each in forest.of_source] == [[0, 6, 5, 4, 2], [0, 3, 1]]


def split_with_prefixes(rows: int = 400, name: str = "a") -> FakeSplit:
    lengths = np.array([25 + row * 7 % 25 for row in range(rows)], np.int32)
    numbers = np.array([row % 5 for row in range(rows)], np.int32)
    return FakeSplit(name, lengths, lengths // 2, prefixes=PREFIXES, numbers=numbers)


def steps_of(share: bool, *, global_size: int = 12, seq_len: int = 128) -> list[GlobalStep]:
    splits = {"a": split_with_prefixes(), "b": split_with_prefixes(100, "b")}
    data = data_config(["a", "b"], share_prefix=share, seq_len=seq_len)
    return list(Stream(splits, data, seed=1, global_size=global_size))


def test_every_step_has_the_same_samples_in_fewer_rows() -> None:
    shared, apart = steps_of(True), steps_of(False)
    assert len(shared) == len(apart)
    for one, other in zip(shared, apart, strict=True):
        assert sorted(all_samples([one])) == sorted(all_samples([other]))
        assert one.filled == len(one.rows) <= other.filled
        for name in ("samples", "tokens", "targets", "weight", "source_samples", "source_tokens", "epochs"):
            assert getattr(one, name) == getattr(other, name), name
    assert sum(each.filled for each in shared) <= 0.83 * sum(each.filled for each in apart)


def test_rows_hold_what_the_step_counts() -> None:
    split = split_with_prefixes()
    for step in steps_of(True):
        positions = pairs = 0
        for row in step.rows:
            computed = 0
            paid: set[int] = set()
            for place, (_, sample) in enumerate(row.samples):
                number, length = int(split.shared[sample]), int(split.lengths[sample])
                spared = max((SIZES[each] for each in path(number) & paid), default=0)
                paid |= path(number) - {0}
                earlier, tokens = row.shared[place] if row.shared else (place, 0)
                assert tokens == spared
                assert earlier < place or not tokens
                if tokens:
                    other = int(split.shared[row.samples[earlier][1]])
                    assert max(SIZES[each] for each in path(number) & path(other)) == tokens
                computed += length - spared
                pairs += sum(range(spared + 1, length + 1))  # the n-th token sees n
            assert computed <= 128
            positions += computed
        assert (step.positions, step.pairs) == (positions, pairs)


def test_rows_are_as_full_as_without() -> None:
    for step in steps_of(True, global_size=40):
        assert step.filled <= -(-step.positions // 128) + 2  # a row holds about four samples


def test_neighbouring_rows_attend_to_about_as_much_as_any_others() -> None:
    """However many ranks divide a step in blocks: here each of two to eight."""
    lengths = np.array([30 if row % 2 else 120 for row in range(4000)], np.int32)
    numbers = np.array([1 if row % 2 else 4 for row in range(4000)], np.int32)
    split = FakeSplit("a", lengths, lengths // 2, prefixes=PREFIXES, numbers=numbers)
    data = data_config(["a"], share_prefix=True, seq_len=128, window=4000)
    step = next(Stream({"a": split}, data, seed=1, global_size=256))
    pairs = []
    for row in step.rows:
        left = row.shared or [(0, 0)] * len(row.samples)
        sizes = [(int(lengths[sample]), tokens) for (_, sample), (_, tokens) in zip(row.samples, left, strict=True)]
        pairs.append(sum(n * (n + 1) - t * (t + 1) for n, t in sizes))
    assert max(pairs) > 1.5 * min(pairs)
    for ranks in range(2, 9):
        bounds = [len(pairs) * rank // ranks for rank in range(ranks + 1)]
        means = [np.mean(pairs[start:end]) for start, end in pairwise(bounds)]
        assert max(means) <= 1.1 * min(means)


@pytest.mark.parametrize("global_size", [1, 3, 12])
def test_a_stream_that_groups_resumes_exactly(global_size: int) -> None:
    splits = {"a": split_with_prefixes(60)}
    data = data_config(["a"], share_prefix=True, seq_len=128)
    assert_resumes_exactly(lambda: Stream(splits, data, seed=1, global_size=global_size))


def test_sharing_is_no_part_of_the_order() -> None:
    split = split_with_prefixes()
    digests = {
        Stream({"a": split}, data_config(["a"], share_prefix=share), seed=1, global_size=4).order_fingerprint
        for share in (False, True)
    }
    assert len(digests) == 1
