"""Streams over made-up corpora, and what is asked of every stream: that it resumes exactly from any step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.schema import DataConfig, SourceConfig, StopConfig
from data_prep.stream.permutation import key_of, keys_of
from data_prep.stream.stream import GlobalStep, PackedRow, Stream


@dataclass(frozen=True)
class FakeSplit:
    """Lengths and targets without tokens."""

    name: str
    lengths: NDArray[np.int32]
    targets: NDArray[np.int32]
    prefixes: tuple[tuple[int, ...], ...] = ()
    numbers: NDArray[np.int32] | None = None

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def shared(self) -> NDArray[np.int32]:
        return np.zeros(self.rows, np.int32) if self.numbers is None else self.numbers


def fake_split(name: str, rows: int, *, shortest: int = 3, longest: int = 30) -> FakeSplit:
    """Lengths spread evenly over shortest..longest, in an order that depends on the name only."""
    noise = keys_of(key_of("lengths", name), np.arange(rows))
    lengths = (shortest + noise % np.uint64(longest - shortest + 1)).astype(np.int32)
    return FakeSplit(name, lengths, (lengths // 2).astype(np.int32))


def fake_splits(**rows: int) -> dict[str, FakeSplit]:
    return {name: fake_split(name, count) for name, count in rows.items()}


def leaf(**settings: Any) -> SourceConfig:
    return SourceConfig(format="alpaca", path="x.jsonl", **settings)


def data_config(sources: Mapping[str, SourceConfig] | Iterable[str], **settings: Any) -> DataConfig:
    """A small data section; names alone stand for leaves without a weight."""
    tree = dict(sources) if isinstance(sources, Mapping) else {name: leaf() for name in sources}
    defaults: dict[str, Any] = {"seq_len": 64, "window": 50, "stop": StopConfig(epochs=1.0), "share_prefix": False}
    return DataConfig(sources=tree, **{**defaults, **settings})


def all_rows(steps: Iterable[GlobalStep]) -> list[PackedRow]:
    """The global rows in order, without the empty ones at the end of the data."""
    return [row for step in steps for row in step.rows if row.samples]


def all_samples(steps: Iterable[GlobalStep]) -> list[tuple[int, int]]:
    return [sample for row in all_rows(steps) for sample in row.samples]


def states_and_steps(stream: Stream) -> tuple[list[str], list[GlobalStep]]:
    """Every state of a run as JSON text, before the first and after each step, and its steps."""
    states, steps = [json.dumps(stream.state_dict())], []
    for step in stream:
        steps.append(step)
        states.append(json.dumps(stream.state_dict()))
    return states, steps


def assert_resumes_exactly(make: Callable[[], Stream]) -> None:
    """Restore at every step, through JSON and into a new stream, and compare everything that follows."""
    states, steps = states_and_steps(make())
    for done, state in enumerate(states):
        resumed = make()
        resumed.load_state_dict(json.loads(state))
        assert resumed.total_steps() == len(steps)
        assert states_and_steps(resumed) == (states[done:], steps[done:]), f"resumed after {done} of {len(steps)} steps"
