"""The stream: the same samples for any number of ranks, exact resume from any step, every row used as often as due."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import BadData, ConfigError
from conf.schema import DataConfig, SourceConfig, StopConfig
from data_prep.stream.order import window_size
from data_prep.stream.steps import most_samples
from data_prep.stream.stream import EMPTY, Stream, rank_rows
from tests.data_prep.streams import (
    FakeSplit,
    all_rows,
    all_samples,
    assert_resumes_exactly,
    data_config,
    fake_split,
    fake_splits,
    leaf,
    states_and_steps,
)

MIXTURE = {"a": leaf(weight=5.0), "b": leaf(weight=3.0), "c": leaf(weight=1.0, max_epochs=2)}
SPLITS = fake_splits(a=90, b=40, c=11)


def stream(
    data: DataConfig,
    splits: Mapping[str, FakeSplit] = SPLITS,
    *,
    global_size: int = 6,
    seed: int = 3,
    max_steps: int = 0,
) -> Stream:
    return Stream(splits, data, seed=seed, global_size=global_size, max_steps=max_steps)


PLANS: dict[str, Callable[[], Stream]] = {
    "mixture": lambda: stream(data_config(MIXTURE, stop=StopConfig(examples=400))),
    "tokens": lambda: stream(data_config(MIXTURE, stop=StopConfig(tokens=5000), unit="tokens")),
    "first_exhausted": lambda: stream(data_config(MIXTURE, stop=StopConfig(first_exhausted=True))),
    "all_seen_once": lambda: stream(data_config(MIXTURE, stop=StopConfig(all_seen_once=True))),
    "epochs": lambda: stream(data_config(["a"], stop=StopConfig(epochs=3.0)), fake_splits(a=120)),
    "unpacked": lambda: stream(data_config(["a", "b", "c"], pack="none")),
    "max_steps": lambda: stream(data_config(MIXTURE, stop=StopConfig(epochs=50.0)), max_steps=9),
    "window_of_one": lambda: stream(data_config(["a"], window=1), fake_splits(a=20)),
}


@pytest.mark.parametrize("plan", PLANS)
def test_resumes_exactly_from_every_step(plan: str) -> None:
    assert_resumes_exactly(PLANS[plan])


@pytest.mark.parametrize("plan", PLANS)
def test_a_step_says_what_is_in_it(plan: str) -> None:
    """Counts, tokens, the loss denominator and epochs against brute force over the rows."""
    made = PLANS[plan]()
    splits = SPLITS if len(made.names) == 3 else fake_splits(a={"epochs": 120, "window_of_one": 20}[plan])
    total, used = made.total_steps(), Counter[str]()
    steps = list(made)
    assert [step.index for step in steps] == list(range(total))
    for step in steps:
        samples = [(made.names[source], row) for packed in step.rows for source, row in packed.samples]
        lengths = [int(splits[name].lengths[row]) for name, row in samples]
        used.update(name for name, _ in samples)
        assert len(step.rows) == 6
        assert step.samples == len(samples) == sum(step.source_samples)
        assert step.tokens == sum(lengths) == sum(packed.tokens for packed in step.rows) == sum(step.source_tokens)
        assert step.pairs == sum(length * (length + 1) // 2 for length in lengths)
        assert step.filled == sum(bool(packed.samples) for packed in step.rows)
        assert step.targets == sum(int(splits[name].targets[row]) for name, row in samples)
        assert max(packed.tokens for packed in step.rows) <= 64
        for each, name in enumerate(made.names):
            assert step.source_samples[each] == sum(name == found for found, _ in samples)
            assert step.epochs[each] == used[name] / splits[name].rows
    assert all(EMPTY not in step.rows for step in steps[:-1])


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_ranks_together_hold_the_global_batch_and_take_equal_turns(world: int) -> None:
    for global_size in (1, 6, 7):
        for step in stream(data_config(MIXTURE), global_size=global_size):
            shares = [rank_rows(step, rank, world) for rank in range(world)]
            assert {len(share) for share in shares} == {-(-global_size // world)}
            dealt = tuple(row for share in shares for row in share)
            assert dealt[:global_size] == step.rows
            assert set(dealt[global_size:]) <= {EMPTY}
            assert most_samples(step, world) == max(sum(len(row.samples) for row in share) for share in shares)
            assert most_samples(replace(step, rows=tuple(step.rows)), world) == most_samples(step, world)


def test_a_peek_is_the_next_step_and_takes_nothing() -> None:
    made, looked_at = (stream(data_config(MIXTURE), global_size=5) for _ in range(2))
    for step in made:
        assert looked_at.peek() == looked_at.peek() == step
        assert next(looked_at) == step
    assert looked_at.peek() is None
    assert looked_at.state_dict() == made.state_dict()


@given(st.integers(1, 17), st.integers(1, 6), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_blocks_dealt_in_turn_are_the_same_for_any_number_of_ranks(global_size: int, world: int, block: int) -> None:
    step = next(stream(data_config(MIXTURE), global_size=global_size))
    shares = [rank_rows(step, rank, world, block) for rank in range(world)]
    turns = -(-global_size // (world * block))
    assert {len(share) for share in shares} == {turns * block}
    dealt = [share[turn * block : (turn + 1) * block] for turn in range(turns) for share in shares]
    blocks = -(-global_size // block)
    assert dealt[:blocks] == [rank_rows(step, 0, 1, block)[first * block :][:block] for first in range(blocks)]
    assert all(row == EMPTY for rows in dealt[blocks:] for row in rows)
    ids = [[(source * 1000 + row) for packed in share for source, row in packed.samples] for share in shares]
    assert most_samples(step, world, block) == max(map(len, ids))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10))
@settings(max_examples=40, deadline=None)
def test_a_run_goes_on_with_another_global_size(first: int, second: int, saved_at: int) -> None:
    """The state counts rows: whatever the batch before and after, the global rows are those of one run."""
    data = data_config(MIXTURE)
    whole = all_rows(stream(data, global_size=5))
    begun = stream(data, global_size=first)
    head = all_rows(islice(begun, saved_at))
    resumed = stream(data, global_size=second)
    resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    expected, before = resumed.total_steps(), resumed.state_dict()["step"]
    tail = list(resumed)
    assert head + all_rows(tail) == whole
    assert before + len(tail) == expected


def test_the_state_counts_what_was_handed_out_and_stays_small() -> None:
    states, steps = states_and_steps(stream(data_config(MIXTURE, stop=StopConfig(epochs=100.0))))
    assert max(map(len, states)) < 1200
    state = json.loads(states[-2])
    assert state["step"] == len(steps) - 1
    assert state["rows_done"] == 6 * (len(steps) - 1)


@given(
    st.lists(st.tuples(st.integers(1, 80), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 500),
    st.integers(1, 90),
    st.integers(0, 2**40),
    st.sampled_from(["exact", "none"]),
)
@settings(max_examples=60, deadline=None)
def test_every_row_is_used_as_often_as_any_other(
    sources: list[tuple[int, int]], draws: int, window: int, seed: int, pack: str
) -> None:
    names = [f"s{number}" for number in range(len(sources))]
    splits = {name: fake_split(name, rows) for name, (rows, _) in zip(names, sources, strict=True)}
    tree = {name: leaf(weight=float(weight)) for name, (_, weight) in zip(names, sources, strict=True)}
    data = data_config(tree, stop=StopConfig(examples=draws), window=window, pack=pack)
    used = Counter(all_samples(stream(data, splits, seed=seed)))
    assert used.total() == draws
    for index, name in enumerate(names):
        counts = [used[index, row] for row in range(splits[name].rows)]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("window", [7, 50, 120, 1000])
@pytest.mark.parametrize("pack", ["exact", "none"])
def test_epochs_of_one_source_are_each_the_data_set_once(window: int, pack: str) -> None:
    splits = fake_splits(a=120)
    made = stream(data_config(["a"], window=window, pack=pack, stop=StopConfig(epochs=3.0)), splits)
    samples = all_samples(made)
    passes = [samples[at : at + 120] for at in range(0, 360, 120)]
    assert len(samples) == 360
    assert all(sorted(each) == [(0, row) for row in range(120)] for each in passes)
    assert passes[0] != passes[1] != passes[2]


def test_the_last_batch_is_filled_up_with_empty_rows_and_nothing_is_dropped() -> None:
    splits = fake_splits(a=10)
    steps = list(stream(data_config(["a"], pack="none"), splits, global_size=4))
    assert [sum(bool(row.samples) for row in step.rows) for step in steps] == [4, 4, 2]
    assert steps[-1].rows[2:] == (EMPTY, EMPTY)
    assert sorted(all_samples(steps)) == [(0, row) for row in range(10)]


def test_rows_are_nearly_full_and_in_the_order_of_the_mixture() -> None:
    splits = fake_splits(a=9000, b=9000)
    data = data_config({"a": leaf(weight=3.0), "b": leaf(weight=1.0)}, seq_len=256, window=2048)
    rows = all_rows(stream(data, splits))
    windows = -(-18000 // 2048)
    assert len(rows) * 256 < sum(row.tokens for row in rows) + 256 * windows
    share = [np.mean([source == 0 for row in rows[at : at + 200] for source, _ in row.samples]) for at in (0, 400, 800)]
    assert np.abs(np.array(share) - 0.75).max() < 0.03


@given(st.integers(1, 60), st.integers(0, 20), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_the_number_of_steps_is_exact_wherever_the_limit_is(max_steps: int, taken: int, global_size: int) -> None:
    """Well before the end of the data nothing is packed for it; near the end the bound is not enough."""
    made = stream(data_config(MIXTURE), global_size=global_size, max_steps=max_steps)
    list(islice(made, taken))
    served = made.state_dict()["step"]
    assert made.total_steps() == served + len(list(made))


def test_a_limit_far_from_the_end_costs_no_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stream(data_config(MIXTURE, stop=StopConfig(epochs=50.0)), max_steps=9)
    monkeypatch.setattr(made.planner, "count_rows", lambda place: pytest.fail("packed a window to count its rows"))
    assert made.total_steps() == 9


def test_seed_and_name_choose_the_order_and_nothing_else_does() -> None:
    data = data_config(["a", "b", "c"])
    assert all_rows(stream(data)) == all_rows(stream(data))
    assert all_rows(stream(data)) != all_rows(stream(data, seed=4))
    assert sorted(all_samples(stream(data))) == sorted(all_samples(stream(data, seed=4)))
    assert stream(data).order_fingerprint == stream(data, global_size=9, max_steps=2).order_fingerprint
    changed = [
        stream(data, seed=4),
        stream(replace(data, seq_len=65)),
        stream(replace(data, window=51)),
        stream(replace(data, stop=StopConfig(epochs=2.0))),
        stream(data_config({"a": leaf(weight=1.0), "b": leaf(weight=1.0), "c": leaf(weight=1.0)})),
        stream(data, {**SPLITS, "c": replace(SPLITS["c"], lengths=SPLITS["c"].lengths[::-1].copy())}),
    ]
    assert len({each.order_fingerprint for each in [*changed, stream(data)]}) == len(changed) + 1


def test_golden_order() -> None:
    """Raise plan.ALGORITHM whenever this must change: runs that were begun before cannot go on exactly."""
    first = next(stream(data_config(MIXTURE), global_size=2))
    assert [list(row.samples) for row in first.rows] == [
        [(1, 6), (0, 62), (2, 0), (0, 26)],
        [(0, 9), (0, 1), (1, 17), (1, 36)],
    ]


def test_a_step_made_ahead_is_dropped_when_a_state_is_loaded() -> None:
    began, gone_on = stream(data_config(MIXTURE)), stream(data_config(MIXTURE))
    state = began.state_dict()
    first = next(gone_on)
    gone_on.look_ahead()
    gone_on.load_state_dict(state)
    assert next(gone_on) == first


def test_auto_window_holds_at_least_256_rows() -> None:
    data = data_config(["a"], seq_len=2048, window="auto")
    assert window_size(data, 52002, 111 * 52002) == 8192
    assert window_size(data, 1000, 2048 * 1000) == 4096
    assert window_size(replace(data, seq_len=65536), 1000, 100 * 1000) == 65536


def test_a_source_of_weight_0_may_be_in_the_corpus_or_not() -> None:
    tree = {"a": leaf(), "b": leaf(weight=0.0), "g": SourceConfig(sources={"x": leaf()})}
    made = stream(data_config(tree), fake_splits(a=20, b=20, **{"g.x": 20}))
    assert made.names == ("a", "b", "g.x")
    assert {source for source, _ in all_samples(made)} == {0, 2}
    assert len(all_samples(stream(data_config(tree), fake_splits(a=20, **{"g.x": 20})))) == 40


def test_mistakes_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"only in data\.sources: d; only in the corpus: c"):
        stream(data_config(["a", "b", "d"]))
    with pytest.raises(ConfigError, match=r"data\.seq_len: 16, but row \d+ of source a was prepared with 30 tokens"):
        stream(data_config(["a", "b", "c"], seq_len=16))
    lengths = SPLITS["a"].lengths.copy()
    lengths[5] = 0
    with pytest.raises(BadData, match="row 5 of source a has no tokens"):
        stream(data_config(["a"]), {"a": replace(SPLITS["a"], lengths=lengths)})
