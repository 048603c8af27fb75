"""Shared prefixes: which are found, who may share them, and that rows which share pack within their capacity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.corpus.prefixes import SHORTEST, Prefixes, find, shareable
from data_prep.stream.packing import Shared, pack
from data_prep.stream.stream import Stream
from data_prep.templates.prompts import ALPACA_NO_INPUT, ALPACA_WITH_INPUT
from tests.data_prep.streams import FakeSplit, all_rows, all_samples, data_config

Sample = tuple[list[int], list[int]]


def sample(head: Sequence[int], rest: int, *, length: int = 30) -> Sample:
    """``head``, then tokens that only this sample has; the last ten are targets."""
    ids = [*head, *range(rest * 1000, rest * 1000 + length - len(head))]
    return ids, [0] * (length - 10) + [1] * 10


A, B, COMMON = [1] * 8 + [2, 3, 4, 5], [1] * 8 + [6, 7, 8], [1] * 8


def test_samples_divide_into_groups_that_share_more() -> None:
    samples = [sample(A if row % 3 else B, row + 10) for row in range(90)]
    assert find(samples, seq_len=30 * 20).ids == (tuple(A), tuple(B))


def test_groups_too_small_for_a_row_share_what_all_have() -> None:
    samples = [sample(A if row % 3 else B, row + 10) for row in range(90)]
    # Two samples in a row: apart, neither group has another of its own there.
    assert find(samples, seq_len=60).ids == (tuple(COMMON),)


def test_short_or_rare_beginnings_are_not_worth_it() -> None:
    assert find([sample([1] * (SHORTEST - 1), row + 10) for row in range(50)], seq_len=600).ids == ()
    assert find([sample([row + 1] * 12, row + 100) for row in range(50)], seq_len=600).ids == ()
    assert find([], seq_len=64).ids == ()


def test_the_last_token_of_a_prefix_predicts_no_target() -> None:
    mask = [0] * 6 + [1, 1]
    assert shareable(np.array(mask)) == 5
    prefixes = Prefixes(((1, 1, 1, 1, 1, 1), (1, 1, 1)), (np.full(6, 1, np.int32), np.full(3, 1, np.int32)))
    assert prefixes.of(np.ones(8, np.int32), np.array(mask)) == (1, 3)
    assert prefixes.of(np.ones(8, np.int32), np.array([0] * 7 + [1])) == (0, 6)
    assert prefixes.of(np.array([1, 2] * 4, np.int32), np.array(mask)) == (-1, 0)


def test_beginnings_of_one_token_repeated_need_no_deep_recursion() -> None:
    samples = [([7] * (row + 3), [0] * (row + 2) + [1]) for row in range(1500)]
    assert find(samples, seq_len=8192).ids


def test_alpacas_two_prompts_are_found(real_data: Callable[[str], Path]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(real_data("tokenizers/gpt2") / "tokenizer.json"))
    heads = [ALPACA_WITH_INPUT.split("{instruction}")[0], ALPACA_NO_INPUT.split("{instruction}")[0]]
    samples = []
    for row in range(600):
        prompt = tokenizer.encode(heads[row % 2] + f"{row} words about {row * 7 % 601}").ids
        samples.append((prompt + [50256] * 40, [0] * len(prompt) + [1] * 40))
    found = [tokenizer.decode(list(ids)) for ids in find(samples, seq_len=2048).ids]
    assert found == heads


LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), min_size=1, max_size=120)
SIZES = [0, 9, 12, 20]


@settings(max_examples=200, deadline=None)
@given(LENGTHS)
def test_rows_pay_for_each_prefix_once_and_fit(pieces: list[tuple[int, int]]) -> None:
    lengths, groups = [length for length, _ in pieces], [group for _, group in pieces]
    rows = pack(lengths, 64, Shared(groups, SIZES))
    assert sorted(index for row in rows for index in row) == list(range(len(pieces)))
    for row in rows:
        paid = sum(SIZES[group] for group in {groups[index] for index in row})
        assert sum(lengths[index] for index in row) + paid <= 64


def split_with_prefixes(rows: int = 300) -> FakeSplit:
    lengths = np.array([20 + row * 7 % 25 for row in range(rows)], np.int32)
    numbers = np.array([row % 3 for row in range(rows)], np.int32)
    return FakeSplit("a", lengths, lengths // 2, prefixes=((1,) * 12, (2,) * 9), numbers=numbers)


def test_a_stream_that_shares_has_the_same_samples_in_fewer_rows() -> None:
    splits = {"a": split_with_prefixes()}
    steps = {
        share: list(Stream(splits, data_config(["a"], share_prefix=share, seq_len=128), seed=1, global_size=4))
        for share in (False, True)
    }
    assert sorted(all_samples(steps[True])) == sorted(all_samples(steps[False]))
    assert len(all_rows(steps[True])) < len(all_rows(steps[False]))
    assert all(row.share_prefix for row in all_rows(steps[True]))
    sizes = (0, 12, 9)
    for step in steps[True]:
        positions = pairs = 0
        for row in (row for row in step.rows if row.samples):
            paid = {0}
            for _, place in row.samples:
                number, length = int(splits["a"].shared[place]), int(splits["a"].lengths[place])
                spared = sizes[number] if number in paid else 0
                paid.add(number)
                positions += length - spared
                pairs += sum(range(spared + 1, length + 1))  # the n-th token sees n
            index = np.array([place for _, place in row.samples])
            paid_for = sum(sizes[number] for number in paid)
            assert (splits["a"].lengths[index] - np.array(sizes)[splits["a"].shared[index]]).sum() + paid_for <= 128
        assert (step.positions, step.pairs) == (positions, pairs)
    whole, computed = (sum(getattr(step, name) for step in steps[True]) for name in ("tokens", "positions"))
    assert whole == splits["a"].lengths.sum() == sum(step.positions for step in steps[False])
    assert computed < whole


def test_sharing_is_part_of_the_order() -> None:
    split = split_with_prefixes()
    digests = {
        Stream({"a": split}, data_config(["a"], share_prefix=share), seed=1, global_size=4).order_fingerprint
        for share in (False, True)
    }
    assert len(digests) == 2
