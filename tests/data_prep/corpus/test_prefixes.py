"""Shared prefixes: which are found, and who may share them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.corpus import prefixes as module
from data_prep.corpus.prefixes import SHORTEST, Prefixes, find, shareable
from data_prep.stream.forest import parents_of
from data_prep.templates.prompts import ALPACA_NO_INPUT, ALPACA_WITH_INPUT

Sample = tuple[list[int], list[int]]


def sample(head: Sequence[int], rest: int, *, length: int = 40) -> Sample:
    """``head``, then tokens that only this sample has; the last ten are targets."""
    ids = [*head, *range(rest * 1000, rest * 1000 + length - len(head))]
    return ids, [0] * (length - 10) + [1] * 10


COMMON = [1] * 8
A, B = COMMON + [2] * 8, COMMON + [3] * 9


def test_what_parts_of_the_samples_have_in_common_is_found_below_what_all_have() -> None:
    samples = [sample(A if row % 3 else B, row + 10) for row in range(90)]
    found = find(samples).ids
    assert found == (tuple(COMMON), tuple(A), tuple(B))
    assert parents_of(found) == [-1, 0, 0]


def test_short_or_lone_beginnings_are_not_worth_it() -> None:
    assert find([sample([1] * (SHORTEST - 1), row + 10) for row in range(50)]).ids == ()
    assert find([sample([row + 1] * 12, row + 100) for row in range(50)]).ids == ()
    one_more = [sample([*COMMON, 2] if row % 2 else COMMON, row + 10) for row in range(50)]
    assert find(one_more).ids == (tuple(COMMON), (*COMMON, 2))
    assert find([]).ids == ()


def test_the_last_token_of_a_prefix_predicts_no_target() -> None:
    mask = [0] * 6 + [1, 1]
    assert shareable(np.array(mask)) == 5
    prefixes = Prefixes(((1, 1, 1), (1, 1, 1, 1, 1, 1)))
    assert prefixes.of(np.ones(8, np.int32), np.array(mask)) == (0, 3)
    assert prefixes.of(np.ones(8, np.int32), np.array([0] * 7 + [1])) == (1, 6)
    assert prefixes.of(np.array([1, 2] * 4, np.int32), np.array(mask)) == (-1, 0)


def test_beginnings_of_one_token_repeated_are_a_chain() -> None:
    samples = [([7] * (row + 3), [0] * (row + 2) + [1]) for row in range(1500)]
    with mock.patch.object(module, "MOST_TOKENS", 10**9):
        sizes = [len(ids) for ids in find(samples).ids]
    assert sizes == list(range(SHORTEST, sizes[-1] + 1))


def test_alpacas_two_prompts_are_found(real_data: Callable[[str], Path]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(real_data("tokenizers/gpt2") / "tokenizer.json"))
    heads = [ALPACA_WITH_INPUT.split("{instruction}")[0], ALPACA_NO_INPUT.split("{instruction}")[0]]
    samples = []
    for row in range(600):
        prompt = tokenizer.encode(heads[row % 2] + f"{row} words about {row * 7 % 601}").ids
        samples.append((prompt + [50256] * 40, [0] * len(prompt) + [1] * 40))
    found = [tokenizer.decode(list(ids)) for ids in find(samples).ids]
    assert {*heads} <= {*found}
    assert heads[0].startswith(min(found, key=len))
    assert heads[1].startswith(min(found, key=len))


FEW = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), max_size=40)


def begins(ids: Sequence[int], prefix: Sequence[int]) -> bool:
    return [*ids[: len(prefix)]] == [*prefix]


def longest(known: Iterable[Sequence[int]], ids: Sequence[int]) -> int:
    return max((len(each) for each in known if begins(ids, each)), default=0)


@settings(max_examples=300, deadline=None)
@given(FEW, st.sampled_from([3, 1000]), st.integers(1, 4))
def test_every_point_where_samples_part_is_found_and_the_longest_is_named(
    heads: list[list[int]], at_once: int, shortest: int
) -> None:
    samples = [([*head, 9, 9], [0] * (len(head) + 1) + [1]) for head in heads]
    with mock.patch.multiple(module, EXAMINED=at_once, SHORTEST=shortest, SAVED=0):
        found = find(samples)
    ids = found.ids
    assert list(ids) == sorted({*ids})
    counts = [sum(begins(head, each) for head in heads) for each in ids]
    assert all(count > 1 for count in counts)
    above = [longest([other for other in ids if len(other) < len(each)], each) for each in ids]
    assert all(len(each) >= shortest for each in ids)
    assert [len(ids[parent]) if parent >= 0 else 0 for parent in parents_of(ids)] == above
    for head, (tokens, mask) in zip(heads, samples, strict=True):
        index, size = found.of(tokens, mask)
        assert size == longest(ids, head)
        assert index == (ids.index(tuple(head[:size])) if size else -1)
    if at_once > len(heads):
        for one in heads:
            for other in heads:
                agree = next((n for n in range(len(one)) if one[: n + 1] != other[: n + 1]), len(one))
                if one is not other and agree >= shortest:
                    assert tuple(one[:agree]) in ids


def test_what_saves_least_is_left_out_beyond_what_a_manifest_holds() -> None:
    samples = [sample([row % 10 + 1] * (10 + row % 10), row + 10) for row in range(100)]
    everything = find(samples).ids
    assert [len(each) for each in everything] == list(range(10, 20))
    with mock.patch.object(module, "MOST_TOKENS", 60):
        assert [len(each) for each in find(samples).ids] == [17, 18, 19]
