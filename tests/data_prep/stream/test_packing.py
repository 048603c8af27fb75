"""Exact finish: nothing split, lost or repeated, stream order kept, and rows full on the real Alpaca file."""

from __future__ import annotations

import gzip
import json
import os
import time
from bisect import bisect_left, insort
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.stream.order import window_size
from data_prep.stream.packing import exact_finish, pack
from data_prep.stream.permutation import permute
from tests.data_prep.streams import data_config

CAPACITY = 64
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=200)


def reference(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best fit decreasing as one reads it: longest first, each into the fullest row that still has room."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(free, (lengths[index], -1))
        if place == len(free):
            rows.append([])
            insort(free, (capacity, len(rows) - 1))
        room, row = free.pop(place)
        rows[row].append(index)
        insort(free, (room - lengths[index], row))
    return rows


def filled(lengths: Sequence[int], rows: list[list[int]]) -> list[int]:
    return [sum(lengths[i] for i in row) for row in rows]


@given(LENGTHS)
def test_every_sample_once_and_no_row_over_capacity(lengths: list[int]) -> None:
    rows = pack(lengths, CAPACITY)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(1 <= tokens <= CAPACITY for tokens in filled(lengths, rows))
    assert pack(lengths, CAPACITY) == rows


@given(LENGTHS)
def test_rows_come_in_the_order_in_which_they_were_begun(lengths: list[int]) -> None:
    """Each row begins with the first sample of the stream that no earlier row has taken."""
    taken: set[int] = set()
    for row in pack(lengths, CAPACITY):
        assert row[0] == min(set(range(len(lengths))) - taken)
        taken |= set(row)


@given(LENGTHS)
def test_never_more_rows_than_reference(lengths: list[int]) -> None:
    assert -(-sum(lengths) // CAPACITY) <= len(pack(lengths, CAPACITY)) <= len(reference(lengths, CAPACITY))


@given(LENGTHS)
def test_exact_finish_closes_a_row_only_when_nothing_left_fits(lengths: list[int]) -> None:
    rows = exact_finish(lengths, CAPACITY) if lengths else []
    for number, tokens in enumerate(filled(lengths, rows)):
        later = [lengths[i] for row in rows[number + 1 :] for i in row]
        assert not later or min(later) > CAPACITY - tokens


@given(st.lists(st.integers(1, 12), min_size=400, max_size=600))
@settings(max_examples=20, deadline=None)
def test_short_samples_reach_the_lower_bound(lengths: list[int]) -> None:
    assert len(pack(lengths, CAPACITY)) == -(-sum(lengths) // CAPACITY)


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([], []),
        ([64], [[0]]),
        ([64, 64], [[0], [1]]),
        ([40, 40, 24, 24], [[0, 2], [1, 3]]),
        ([60, 60, 5], [[0], [1], [2]]),
        ([30, 30, 9, 9, 8, 8, 17, 17], [[0, 6, 7], [1, 2, 3, 4, 5]]),
    ],
)
def test_small_cases(lengths: list[int], rows: list[list[int]]) -> None:
    assert pack(lengths, CAPACITY) == rows


@pytest.mark.parametrize("shape", ["alike", "even", "above_half", "long_tail", "bimodal"])
def test_awkward_lengths_are_packed_as_well_as_by_best_fit_and_quickly(shape: str) -> None:
    noise = permute(np.arange(8192), 8192, 3)
    lengths = {
        "alike": np.full(8192, 100),
        "even": 20 + 2 * (noise % 190),
        "above_half": 1100 + noise % 900,
        "long_tail": 10 + (noise**3 // 8192**2) // 5,
        "bimodal": np.where(noise % 5 < 2, 900 + noise % 700, 40 + noise % 200),
    }[shape].tolist()
    start = time.process_time()  # not the wall clock, which counts what else the machine does
    rows = pack(lengths, 2049)
    assert time.process_time() - start < 1.0
    assert len(rows) <= len(reference(lengths, 2049))


@pytest.fixture(scope="module")
def alpaca_lengths(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """GPT-2 tokens of Stanford's prompt, the answer and EOS, of all 52,002 rows; shuffled once."""
    if "CORRAL_TEST_DATA" not in os.environ:
        pytest.skip("CORRAL_TEST_DATA is not set: the real Alpaca file is not at hand")
    from tokenizers import Tokenizer

    data = Path(os.environ["CORRAL_TEST_DATA"])
    with gzip.open(data / "alpaca" / "alpaca_data.json.gz") as file:
        rows = json.load(file)
    head = "Below is an instruction that describes a task"
    context = ", paired with an input that provides further context"
    request = ". Write a response that appropriately completes the request.\n\n### Instruction:\n"
    texts = []
    for row in rows:
        given_input = f"\n\n### Input:\n{row['input']}" if row["input"] else ""
        opening = head + (context if row["input"] else "") + request
        texts.append(f"{opening}{row['instruction']}{given_input}\n\n### Response:{row['output']}")
    tokenizer = Tokenizer.from_file(str(data / "tokenizers" / "gpt2" / "tokenizer.json"))
    lengths = np.array([len(each.ids) + 1 for each in tokenizer.encode_batch(texts)])
    return lengths[permute(np.arange(len(lengths)), len(lengths), 0)].tolist()  # type: ignore[no-any-return]


def efficiency(lengths: list[int], capacity: int, window: int) -> float:
    rows = sum(len(pack(lengths[at : at + window], capacity)) for at in range(0, len(lengths), window))
    return sum(lengths) / (rows * capacity)


@pytest.mark.slow
def test_the_real_alpaca_file_is_packed_at_the_bound(alpaca_lengths: list[int]) -> None:
    lengths = alpaca_lengths
    assert efficiency(lengths, 2048, 8192) >= 0.9985
    assert efficiency(lengths, 2048, 65536) >= 0.9995
    for capacity in (2048, 4096):
        window = window_size(data_config(["alpaca"], seq_len=capacity, window="auto"), len(lengths), sum(lengths))
        windows = [lengths[at : at + window] for at in range(0, len(lengths), window)]
        assert all(len(pack(each, capacity)) == -(-sum(each) // capacity) for each in windows)
        assert efficiency(lengths, capacity, window) >= 0.998
    best_fit = sum(len(reference(lengths[at : at + 8192], 2048)) for at in range(0, len(lengths), 8192))
    assert efficiency(lengths, 2048, 8192) > sum(lengths) / (best_fit * 2048)
