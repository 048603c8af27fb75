"""A run that goes on with another mixture, seed or row length: what is refused, and what stays exact."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

import pytest

from conf.errors import ConfigError
from conf.schema import StopConfig
from data_prep.stream.stream import GlobalStep, Stream
from tests.data_prep.stream.test_stream import MIXTURE, stream
from tests.data_prep.streams import (
    all_rows,
    all_samples,
    data_config,
    fake_splits,
    leaf,
    states_and_steps,
)


def saved_after(steps: int, made: Stream) -> tuple[dict[str, Any], list[GlobalStep]]:
    served = list(islice(made, steps))
    return json.loads(json.dumps(made.state_dict())), served


def test_another_plan_is_refused_with_what_differs() -> None:
    state, _ = saved_after(3, stream(data_config(MIXTURE)))
    other = data_config({**MIXTURE, "b": leaf(weight=9.0)}, seq_len=65)
    with pytest.raises(ConfigError) as error:
        stream(other, seed=8).load_state_dict(state)
    text = str(error.value)
    assert "seed: 3 in the checkpoint, 8 now" in text
    assert "data.seq_len: 64 in the checkpoint, 65 now" in text
    assert "source b: share of draws 0.333333 in the checkpoint, 0.600000 now" in text
    assert "data.allow_change=true" in text
    with pytest.raises(ConfigError, match="version 99"):
        stream(data_config(MIXTURE)).load_state_dict({**state, "v": 99})


@pytest.mark.parametrize("saved_at", range(12))
def test_a_changed_mixture_keeps_the_open_window_and_the_use_of_rows_even(saved_at: int) -> None:
    splits = fake_splits(a=60, b=45, c=30)
    before = data_config({"a": leaf(weight=1.0), "c": leaf(weight=2.0)}, stop=StopConfig(examples=700))
    after = data_config(["a", "b", "c"], stop=StopConfig(examples=900), allow_change=True)
    start = stream(before, {"a": splits["a"], "c": splits["c"]})
    state, served = saved_after(saved_at, start)
    untouched = all_rows(start)
    resumed = stream(after, splits)
    resumed.load_state_dict(state)
    assert any("source b: not in the checkpoint" in change for change in resumed.changes)
    total, rest = resumed.total_steps(), list(resumed)
    assert saved_at + len(rest) == total
    # What was left of the open window comes first and unchanged; c has moved from place 1 to 2. Then b joins.
    left = state["stop"] - len(all_samples(served)) if state["offset"] else 0
    unserved = [(2 * source, row) for packed in untouched for source, row in packed.samples]
    assert all_samples(rest)[:left] == unserved[:left]
    assert 1 in {source for source, _ in all_samples(rest)[left : left + 50]}
    used = Counter((2 * source, row) for source, row in all_samples(served)) + Counter(all_samples(rest))
    assert used.total() == 900
    for index, name in enumerate(("a", "b", "c")):
        counts = [used[index, row] for row in range(splits[name].rows)]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("examples", [10, 500], ids=["ends_in_the_open_window", "goes_on"])
def test_a_changed_run_can_be_saved_and_resumed_again(examples: int) -> None:
    splits = fake_splits(a=60, b=45)
    state, _ = saved_after(
        2, stream(data_config(["a"], stop=StopConfig(epochs=4.0)), {"a": splits["a"]}, global_size=2)
    )

    def changed() -> Stream:
        made = stream(data_config(["a", "b"], stop=StopConfig(examples=examples), allow_change=True), splits)
        made.load_state_dict(state)
        return made

    states, steps = states_and_steps(changed())
    assert len(steps) >= 1
    for done, text in enumerate(states):
        resumed = stream(data_config(["a", "b"], stop=StopConfig(examples=examples)), splits)
        resumed.load_state_dict(json.loads(text))
        assert resumed.total_steps() == 2 + len(steps)
        assert list(resumed) == steps[done:]


def test_counters_of_a_source_that_goes_and_returns_are_kept() -> None:
    splits = fake_splits(a=60, b=45)
    both = data_config(["a", "b"], stop=StopConfig(examples=600), allow_change=True)
    one = data_config(["a"], stop=StopConfig(examples=600), allow_change=True)
    state, _ = saved_after(4, stream(both, splits))
    alone = stream(one, {"a": splits["a"]})
    alone.load_state_dict(state)
    middle, _ = saved_after(2, alone)
    assert middle["retained"]["b"] > 0
    again = stream(both, splits)
    again.load_state_dict(middle)
    assert again.state_dict()["retained"] == {}
    assert again.state_dict()["phases"][-1][1][1] == middle["retained"]["b"]


def test_another_seed_or_row_length_may_be_accepted_too() -> None:
    state, _ = saved_after(4, stream(data_config(MIXTURE)))
    resumed = stream(data_config(MIXTURE, seq_len=128, allow_change=True), seed=9)
    resumed.load_state_dict(state)
    assert len(resumed.changes) == 2
    steps = list(resumed)
    assert [step.index for step in steps] == list(range(4, 4 + len(steps)))
